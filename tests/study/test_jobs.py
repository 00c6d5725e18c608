"""`--jobs` of `sweep` and `tune`: runs shared by processes, some of which are killed, fail or are interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.schema.text import parse_solver
from forcereg.study.jobs.crew import Crew, crew_of
from forcereg.study.jobs.job import FOLDER, Job, run
from forcereg.study.jobs.local import Local
from forcereg.study.shared import RUNNING
from forcereg.system.events import Event, Tell
from tests.conftest import TOP, RunCli
from tests.nursery import Nursery
from tests.solver.nets import IMAGES, write_images, write_solver

pytest.importorskip("matplotlib")

SCHEDULE = "max_iter: 6 test_iter: 2 test_interval: 3 snapshot: 2 weight_decay: 0.001"
ASK = ("sweep", "--solver", "solver.prototxt", "--device", "cpu", "--set", "force_decay=0,0.1,0.2", "--seeds", "2")
FORKED = """
import os, signal
from forcereg.registry import executor
from forcereg.study.jobs.job import run

@executor("forked")
class Forked:
    takes = ""

    def __init__(self, job, count, resources):
        self.pids, self.codes = [], {}
        for number in range(count):
            pid = os.fork()
            if not pid:
                os.setsid()
                code = 9
                try:
                    code = run(job, number)
                finally:
                    os._exit(code)
            self.pids.append(pid)

    def ended(self):
        for number, pid in enumerate(self.pids):
            if number not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[number] = os.waitstatus_to_exitcode(found[1])
        return {number: f"was killed by {-code}" if code < 0 else "" for number, code in self.codes.items()}

    def stop(self):
        for number, pid in enumerate(self.pids):
            if number not in self.codes:
                os.kill(pid, signal.SIGTERM)

    def kill(self):
        pass
"""
"""An executor of processes that have torch already."""
KILLER = """
import os, signal
from forcereg.solver.loop import Solver
write = Solver.snapshot
def killed(self):
    write(self)
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
def first():
    try:
        os.close(os.open({here!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
Solver.snapshot = killed
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a solver, and the modules `forked` and `killer`, which kills one process."""
    monkeypatch.chdir(write_images(tmp_path, IMAGES.replace("num_output: 4", "num_output: 8")))
    write_solver(tmp_path, SCHEDULE)
    (tmp_path / "forked.py").write_text(FORKED)
    kills(tmp_path, "first()")
    return tmp_path


def kills(root: Path, condition: str) -> None:
    """Has `killer` kill whoever has written a snapshot of a `self` of which that is true."""
    (root / "killer.py").write_text(KILLER.format(condition=condition, here=str(root / "killed")))


FORK = ("--executor", "forked", "--import", "forked")


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def logs_of(out: Path) -> list[str]:
    return [path.read_text() for path in sorted(out.rglob("train.log"))]


def left_in(out: Path) -> list[str]:
    """What should be gone when a call is through."""
    return [path.name for path in out.rglob("*") if path.name.startswith("claim") or path.name == FOLDER]


# -- a sweep


def test_four_processes_of_which_one_is_killed(root: Path, run_cli: RunCli) -> None:
    """No run is lost, none is done twice, and they come to what one process comes to."""
    assert run_cli(*ASK, "--out", "alone", cwd=root).returncode == 0
    done = run_cli(*ASK, "--jobs", "4", "--import", "killer", cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was killed by SIGKILL; the others go on") == 1 and (root / "killed").exists()
    assert rows_of(root / "sweep") == rows_of(root / "alone") and len(rows_of(root / "alone")) == 6
    logs = logs_of(root / "sweep")
    assert len(logs) == 6 and sum("Restoring previous solver status" in log for log in logs) == 1
    assert all(log.count("Iteration 0, Testing") == 1 and log.count("Iteration 6, Testing") == 1 for log in logs)
    assert not left_in(root / "sweep")
    assert all(f"{number} of 6: " in done.stderr for number in range(1, 7)) and done.stderr.count(": done\n") == 6


@pytest.mark.long
def test_a_run_that_kills_every_process_is_given_up(root: Path, run_cli: RunCli) -> None:
    kills(root, "0.05 < self.param.force_decay < 0.15 and self.param.random_seed == 1")
    done = run_cli(*ASK, "--jobs", "4", *FORK, "--import", "killer", cwd=root)
    assert done.returncode == 1 and "1 of 6 runs failed; sweep/results.csv says why" in done.stderr, done.stderr
    (row,) = [row for row in rows_of(root / "sweep") if row["failed"]]
    assert row["failed"] == "3 jobs that ran it were killed" and row["setting"] == "force_decay=0.1"


FULL = """
from forcereg.errors import ForceregError
from forcereg.study import sweep_run
train = sweep_run.train
def full(solver):
    if solver.param.force_decay > 0.15:
        raise ForceregError("cannot write net: no space left on device; free some space or write elsewhere")
    train(solver)
sweep_run.train = full
"""


def test_an_error_ends_the_process_that_has_it_alone(root: Path, run_cli: RunCli) -> None:
    (root / "full.py").write_text(FULL)
    done = run_cli(*ASK, "--jobs", "3", *FORK, "--import", "full", cwd=root)
    assert done.returncode == 1 and "2 of 6 runs failed; sweep/results.csv says why" in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: job")]
    assert sorted(line.split(": ", 2)[2].split(":")[0] for line in lines if "no space" in line) == [
        f"force_decay=0.2,seed={seed}" for seed in (1, 2)
    ]
    assert "Traceback" not in done.stderr
    assert [bool(row["failed"]) for row in rows_of(root / "sweep")] == [False] * 4 + [True] * 2
    lost = run_cli(*ASK, "--jobs", "1", *FORK, "--import", "full", "--set", "base_lr=0.1", "--out", "lost", cwd=root)
    assert lost.returncode == 1, lost.stderr
    assert "all 1 jobs have ended, and 1 of 6 runs are left, as told above; run again to go on" in lost.stderr


def test_ctrl_c_ends_all_and_a_second_call_goes_on(root: Path, nursery: Nursery, run_cli: RunCli) -> None:
    write_solver(root, SCHEDULE.replace("max_iter: 6", "max_iter: 100000").replace("snapshot: 2", ""))
    call = ("-m", "forcereg", *ASK[:-2], "--jobs", "2", *FORK)
    log = root / "told"
    running = nursery.start(*call, cwd=root, out=root / "out", err=log)
    deadline = time.monotonic() + 120
    while sum("Iteration 3, Testing" in text for text in logs_of(root / "sweep")) < 2:
        assert time.monotonic() < deadline and running.poll() is None, log.read_text()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait() == 130 and log.read_text().endswith("forcereg: interrupted\n"), log.read_text()
    assert len(list(root.rglob("net_iter_*.solverstate.h5"))) == 2 and not left_in(root / "sweep")
    # it goes on, at another length, which is another run's: so by the same text and a stop of our own
    again = nursery.start(*call, cwd=root, out=root / "out", err=log)
    while sum("Restoring previous solver status" in text for text in logs_of(root / "sweep")) < 2:
        assert time.monotonic() < deadline and again.poll() is None, log.read_text()
        time.sleep(0.02)
    again.send_signal(signal.SIGINT)
    assert again.wait() == 130


def test_calls_at_once_share_the_work(root: Path, nursery: Nursery) -> None:
    errs = [root / "one.err", root / "two.err"]
    both = [nursery.start("-m", "forcereg", *ASK[:-2], cwd=root, out=root / "out", err=err) for err in errs]
    assert [one.wait() for one in both] == [0, 0], [err.read_text() for err in errs]
    assert all(log.count("Iteration 6, Testing") == 1 for log in logs_of(root / "sweep")) and not left_in(root)
    assert len(rows_of(root / "sweep")) == 3 and sum(err.read_text().count("done before") for err in errs) == 3


def test_what_another_has_taken_over_is_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stood still ends its run when it sees so, and takes what the other came to."""
    folder = root / "sweep" / "force_decay=0,seed=1"
    (done,) = forcereg.sweep("solver.prototxt", set={"force_decay": [0]}, observer=lambda _: None).results
    kept = (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()

    def taken_over(event: Event) -> None:
        if event.kind == "note" and event.text.startswith("1 of 1"):
            (folder / "claim.1").write_text("another's")
            monkeypatch.setattr(time, "sleep", lambda _: (folder / "result.json").write_bytes(kept))
        if event.kind == "warning":
            told.append(event.text)

    told: list[str] = []
    (again,) = forcereg.sweep("solver.prototxt", set={"force_decay": [0]}, observer=taken_over).results
    assert again == done and "another process has taken over" in told[0], told


# -- a search

SEARCH = ("tune", "--solver", "solver.prototxt", "--goal", "macs<=0.9", "--trials", "5", "--device", "cpu")


def test_a_search_by_processes_of_which_one_is_killed(root: Path, run_cli: RunCli) -> None:
    pytest.importorskip("optuna")
    done = run_cli(*SEARCH, "--jobs", "3", *FORK, "--import", "killer", cwd=root)
    assert done.returncode == 0 and done.stderr.count("was killed by 9; the others go on") == 1, done.stderr
    rows = rows_of(root / "tune")
    assert [row["state"] for row in rows] == ["complete"] * 5 and len({row["force_decay"] for row in rows}) == 5
    assert sum("Restoring previous solver status" in log for log in logs_of(root / "tune")) == 1
    assert not list((root / "tune" / RUNNING).iterdir()) and not left_in(root / "tune")
    assert "trial 5 of at most 5" in done.stderr


def test_a_trial_that_kills_every_process_is_given_up(root: Path, run_cli: RunCli) -> None:
    pytest.importorskip("optuna")
    kills(root, "0 < self.param.force_decay")
    ask = SEARCH[:-4]
    done = run_cli(*ask, "--trials", "2", "--device", "cpu", "--jobs", "4", *FORK, "--import", "killer", cwd=root)
    assert done.returncode == 0, done.stderr
    states = {row["state"]: row["failed"] for row in rows_of(root / "tune")}
    assert states == {"complete": "", "failed": "3 workers that ran it were killed"}


def test_an_error_in_a_trial_is_its_failure_alone(root: Path, run_cli: RunCli) -> None:
    pytest.importorskip("optuna")
    (root / "full.py").write_text(FULL.replace("> 0.15", "> 0"))
    done = run_cli(*SEARCH, "--jobs", "2", *FORK, "--import", "full", cwd=root)
    assert done.returncode == 1 and "all 2 jobs have ended, and " in done.stderr, done.stderr
    states = [row["state"] for row in rows_of(root / "tune")]
    assert states.count("complete") == 1 and states.count("failed") == 2, states


# -- processes

ENDLESS = """
import time
def work(tell, call):
    tell.note("here")
    time.sleep(600)
"""
STARTER = """
import sys, time
from pathlib import Path
from endless import work
from forcereg.study.jobs.job import Job
from forcereg.study.jobs.local import Local
started = Local(Job(work, "call", Path("out"), sys.argv[1], (), 1 << 30), 1, {})
print(started._processes[0].pid, flush=True)
time.sleep(600)
"""


def test_a_process_whose_starter_is_killed_ends(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TOP)])}
    call = [sys.executable, "-c", STARTER, str(tmp_path)]
    starter = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / FOLDER / "call-0.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_job_tells_and_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def job(work: Any) -> tuple[int, list[dict[str, str]]]:
        one = Job(work, "call", Path("out"), str(tmp_path), (), 1 << 30)
        code = run(one, 3)
        lines = one.told(3).read_text().splitlines() if one.told(3).exists() else []
        one.told(3).unlink(missing_ok=True)
        return code, [json.loads(line) for line in lines]

    def fails(error: BaseException) -> Any:
        def work(tell: Tell, call: str) -> None:
            assert call == "call"
            tell.note("here")
            tell.warn("there")
            tell.progress("step", 1, 2)
            raise error

        return work

    said = [{"kind": "note", "text": "here"}, {"kind": "warning", "text": "there"}]
    assert job(lambda tell, call: None) == (0, [])
    assert job(fails(KeyboardInterrupt())) == (130, said)
    assert job(fails(ForceregError("bad"))) == (1, [*said, {"kind": "error", "text": "bad"}])
    assert job(fails(UsageError("bad")))[0] == 2
    code, lines = job(fails(ValueError("odd")))
    assert code == 1 and lines[-1]["text"] == "internal error: ValueError: odd"


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=r"a job can't be sent to a process .*; define its functions and classes"):
        Local(Job(lambda tell, call: None, "call", tmp_path, str(tmp_path), (), 1), 1, {})


def test_a_folder_that_cannot_be_is_told_before_processes_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ForceregError, match=r"cannot write \S+/file/out/jobs: "):
        Local(Job(print, "call", Path("file/out"), str(tmp_path), (), 1), 1, {})


# -- what is asked for


def crew(jobs: int = 2, name: str = "local", resource: Any = (), device: Any = None, mode: str = "GPU") -> Any:
    return crew_of(jobs, name, resource, device, parse_solver(f"solver_mode: {mode}"))


def test_who_takes_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert crew() == crew(device="cuda") == (Crew(2, "local", {}, [0, 1, 2]), "cuda")
    assert crew(device=["cuda:2", "cuda:0"]) == (Crew(2, "local", {}, [2, 0]), "cuda")
    assert crew(device="cuda:1") == (Crew(2, "local", {}), "cuda:1")
    assert crew(device="cpu") == (Crew(2, "local", {}), "cpu") and crew(mode="CPU") == (Crew(2, "local", {}, []), None)
    assert crew(1, device="cuda:1") == (None, "cuda:1")
    assert crew(1, "slurm", {"gres": "gpu:1", "time": 60}) == (Crew(1, "slurm", {"gres": "gpu:1", "time": 60}), None)
    assert crew(1, "slurm", ["cpus-per-task=4"]) == (Crew(1, "slurm", {"cpus_per_task": 4}), None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "slrm"}, "--executor is 'slrm'; expected local, ray, slurm"),
        ({"resource": ["time=1"]}, r"--resource is for jobs elsewhere, by --executor ray .*, slurm \(sbatch's options"),
        ({"name": "slurm", "resource": ["time"]}, "--resource time: expected NAME=VALUE, as in time=600"),
        ({"jobs": 1, "device": ["cuda:0", "cuda:1"]}, "2 devices are named; one run at a time takes one"),
        ({"device": ["cuda:0", "cpu"]}, "device 'cpu' is among several; expected GPUs by their numbers"),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        crew(**asked)
