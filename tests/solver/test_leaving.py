"""Ranks leave when they are told to, or the launcher dies, whatever the others do; what can be saved is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TOP
from tests.nursery import Child, Nursery

HANG = 120
"""Seconds until a test that hangs fails; nothing else depends on it."""
ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
SIZE = 3

NET = """
layer { name: "d" type: "DummyData" top: "data" top: "y" dummy_data_param { shape { dim: 2 dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 100000000 display: 20 snapshot_prefix: "s"
snapshot_format: HDF5 solver_mode: CPU
"""
TESTS = "test_iter: 1000000 test_interval: 40 test_initialization: false"
RUNS = r"Iteration (40), lr"


def until(condition: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Run:
    """A launcher and its ranks."""

    def __init__(self, folder: Path, process: Child | subprocess.Popen[bytes]) -> None:
        self.folder, self.process, self.log = folder, process, folder / "log"

    def until(self, pattern: str) -> None:
        until(lambda: re.search(pattern, self.log.read_text()) or self.process.poll() is not None, self.log)
        assert re.search(pattern, self.log.read_text()), self.log.read_text()

    def ranks(self) -> list[int]:
        files = [self.folder / f"rank_{rank}" for rank in range(SIZE)]
        until(lambda: all(file.exists() and file.read_text() for file in files), self.log)
        return [int(file.read_text()) for file in files]

    def end(self) -> int:
        """The launcher's exit code, once no rank is left."""
        code = self.process.wait(HANG)
        until(lambda: not any(map(alive, self.ranks())), self.log)
        return code

    def saved(self) -> int:
        return len(list(self.folder.glob("s_iter_*.solverstate.h5")))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("forcereg.solver.loop", "forcereg.solver.signals", "forcereg.snapshot.hdf5") as nursery:
        yield nursery


Start = Callable[..., Run]


@pytest.fixture
def start(nursery: Nursery, tmp_path: Path) -> Iterator[Start]:
    """`start("--set", ..., prelude=...)`: a launcher with SIZE ranks, which end with the test."""
    runs: list[Run] = []

    def begin(*args: str, solver: str = "", prelude: str = "") -> Run:
        (tmp_path / "net.prototxt").write_text(NET)
        (tmp_path / "solver.prototxt").write_text(SOLVER + solver)
        log = tmp_path / "log"
        call = ("-m", "tests.solver.launched", "train", "--solver", "solver.prototxt", "--nproc", str(SIZE), *args)
        child = nursery.start(*call, cwd=tmp_path, env={**ENV, "PRELUDE": prelude}, out=log, err=log)
        runs.append(Run(tmp_path, child))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        for pid in run.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# -- all answer


@pytest.mark.parametrize(
    ("whom", "number", "solver"),
    [
        ("launcher", "TERM", ""),
        pytest.param("launcher", "INT", TESTS, marks=pytest.mark.long),
        pytest.param("rank 0", "TERM", TESTS, marks=pytest.mark.long),
        pytest.param("rank 2", "TERM", "", marks=pytest.mark.long),
        ("rank 2", "INT", TESTS),
    ],
    ids=lambda value: value if " " not in value.strip() or "rank" in value else "testing",
)
def test_stop_saves(whom: str, number: str, solver: str, start: Start) -> None:
    run = start(solver=solver)
    run.until("Testing net" if solver else RUNS)
    pid = run.process.pid if whom == "launcher" else run.ranks()[int(whom[-1])]
    os.kill(pid, getattr(signal, f"SIG{number}"))
    assert run.end() == 0, run.log.read_text()
    assert run.saved() == 1 and "Optimization stopped early" in run.log.read_text()


def test_the_same_signal_twice_is_one(start: Start) -> None:
    run = start()
    run.until(RUNS)
    for _ in range(2):
        os.kill(run.process.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert run.end() == 0 and run.saved() == 1, run.log.read_text()


SLOW = """
from forcereg.solver import contact, saving
import time
contact.SILENCE = 1.0
write = saving.snapshot.write_model
def slow(*args, **named):
    open("writing", "w").close()
    time.sleep(3)
    return write(*args, **named)
saving.snapshot.write_model = slow
"""


@pytest.mark.long
def test_a_snapshot_takes_as_long_as_it_takes(start: Start) -> None:
    """With the signal in the middle of it; the others, which wait, see that rank 0 is at work."""
    run = start("--set", "snapshot=40", prelude=SLOW)
    until((run.folder / "writing").exists, run.log)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0 and run.saved() in (1, 2), run.log.read_text()


def test_the_launcher_is_killed(start: Start) -> None:
    run = start()
    run.until(RUNS)
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    assert run.saved() == 1, run.log.read_text()


def test_a_save_asked_for_early_is_late(start: Start) -> None:
    """It neither ends ranks that can't hear it yet nor gets lost."""
    run = start()
    run.ranks()
    os.kill(run.process.pid, signal.SIGHUP)
    run.until(RUNS)
    until(run.saved, run.log)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0, run.log.read_text()


# -- not all answer


HASTY = """
from forcereg.solver import contact, launch
contact.SILENCE = launch.HASTE = 1.0
"""


@pytest.mark.parametrize(
    ("stopped", "whom", "number", "solver"),
    [
        (0, "launcher", "TERM", ""),
        pytest.param(1, "launcher", "INT", TESTS, marks=pytest.mark.long),
        pytest.param(1, "rank 2", "TERM", "", marks=pytest.mark.long),
        (0, "rank 2", "TERM", TESTS),
    ],
    ids=lambda value: value if not isinstance(value, str) or len(value) < 9 else "testing",
)
def test_a_rank_is_stopped(stopped: int, whom: str, number: str, solver: str, start: Start) -> None:
    run = start(solver=solver, prelude=HASTY + "launch.GRACE = 2.0")
    run.until("Testing net" if solver else RUNS)
    os.kill(run.ranks()[stopped], signal.SIGSTOP)
    os.kill(run.process.pid if whom == "launcher" else run.ranks()[2], getattr(signal, f"SIG{number}"))
    assert run.end() == 3, run.log.read_text()
    last = run.log.read_text().splitlines()[-1]
    assert re.match(
        r"forcereg: .*(lost contact|doesn't answer).*; go on from the last snapshot with --resume auto$", last
    )
    assert run.saved() == 0


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_rank_is_stopped_and_the_launcher_killed(stopped: int, start: Start) -> None:
    run = start(prelude=HASTY)
    run.until(RUNS)
    os.kill(run.ranks()[stopped], signal.SIGSTOP)
    run.process.kill()
    run.end()  # the system lets the stopped one go on, so that it sees that, too


def test_a_rank_is_stopped_and_one_insists(start: Start) -> None:
    run = start(prelude="from forcereg.solver import contact; contact.SILENCE = 600")
    run.until(RUNS)
    os.kill(run.ranks()[1], signal.SIGSTOP)
    for _ in range(2):
        os.kill(run.process.pid, signal.SIGTERM)
        time.sleep(1.2)
    assert run.end() == 130
    assert run.log.read_text().splitlines()[-1] == "forcereg: interrupted"


STUCK = """
import os, time
from forcereg.solver.loop import Solver
def stuck(solver, before=Solver._iterate):
    def iterate(display):
        if solver.iter == 60 and os.environ["RANK"] == "1":
            open("stuck", "w").close()
            while True: time.sleep(1)
        before(solver, display)
    return iterate
Solver._iterate = property(stuck)
"""


def test_a_rank_is_stuck_though_it_answers(start: Start) -> None:
    run = start(prelude=HASTY + STUCK)
    until((run.folder / "stuck").exists, run.log)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() != 0
    assert "the iteration doesn't end" in run.log.read_text()


LATE = """
import os, time
from forcereg.solver import distributed
meet = distributed.dist.rendezvous
def late(*args, **named):
    if os.environ["RANK"] == "1":
        time.sleep(1000)
    return meet(*args, **named)
distributed.dist.rendezvous = late
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_that_are_starting_up(number: signal.Signals, stopped: bool, start: Start) -> None:
    """One never comes to the others."""
    run = start(prelude=HASTY + LATE)
    pids = run.ranks()
    until(lambda: len(os.listdir(f"/proc/{pids[0]}/task")) > 1, run.log)
    if stopped:
        os.kill(pids[1], signal.SIGSTOP)
    os.kill(run.process.pid, number)
    assert run.end() == 128 + number, run.log.read_text()
    assert run.log.read_text() == "forcereg: interrupted\n"


# -- under torchrun


@pytest.mark.parametrize("how", ["rank-stopped-agent-killed", "agent-killed", "signal"])
def test_under_torchrun(how: str, long_form: bool, tmp_path: Path) -> None:
    if "rank" not in how and not long_form:
        pytest.skip("in the long form")
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    (tmp_path / "told.py").write_text("import os\nopen(f\"rank_{os.environ['RANK']}\", 'w').write(str(os.getpid()))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}", "-m"]
    with (tmp_path / "log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, "forcereg", "train", "--import", "told", "--solver", "solver.prototxt"],
            cwd=tmp_path,
            env={**os.environ, **ENV, "PYTHONPATH": str(TOP), "PYTHONSAFEPATH": "1"},
            stdout=log,
            stderr=log,
        )
    run = Run(tmp_path, agent)
    try:
        run.until(RUNS)
        if "stopped" in how:
            os.kill(run.ranks()[1], signal.SIGSTOP)
        os.kill(agent.pid, signal.SIGTERM if how == "signal" else signal.SIGKILL)
        run.end()
        assert run.saved() == 1, run.log.read_text()  # the system lets a stopped one go on when its parent dies
    finally:
        agent.kill()
        for pid in run.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
