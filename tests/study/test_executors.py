"""`--executor slurm` and `ray`: a stand-in for Slurm's commands, and Ray itself where it is installed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from forcereg.errors import ForceregError
from forcereg.study.jobs.job import FOLDER, INTERRUPTED, Job
from forcereg.study.jobs.ray import Ray
from forcereg.study.jobs.slurm import Again, Slurm
from tests.conftest import TOP, RunCli
from tests.solver.nets import write_images, write_solver

pytest.importorskip("matplotlib")

SCHEDULE = "max_iter: 4 test_iter: 2 test_interval: 2 weight_decay: 0.001"
ASK = ("sweep", "--solver", "solver.prototxt", "--device", "cpu", "--set", "force_decay=0,0.1")
SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
open("sbatch.text", "w").write(text)
array = re.search(r"--array=0-(\\d+)", text)
for number in range(int(array[1]) + 1 if array else 1):
    own = {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(number)}} if array else {{}}
    env = {{**os.environ, "SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", **own,
            "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here"}}
    log = open("job.log", "a")
    subprocess.Popen(["bash", sys.argv[-1]], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
print("Submitted batch job 77")
"""
"""Runs at once what it is given."""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
  [[ $1 == --unbuffered ]] || shift
  shift
done
exec "$@"
"""
SACCT = "#!/bin/bash\necho 'JobID|State|NodeList'\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a solver."""
    monkeypatch.chdir(write_images(tmp_path))
    write_solver(tmp_path, SCHEDULE)
    return tmp_path


def rows_of(root: Path) -> list[dict[str, str]]:
    with open(root / "sweep" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_by_slurm(root: Path, run_cli: RunCli) -> None:
    pytest.importorskip("submitit")
    tools = root / "tools"
    tools.mkdir()
    for name, text in {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    env = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    wanted = [word for one in ("partition=gpu", "cpus-per-task=2", "licenses=a") for word in ("--resource", one)]
    done = run_cli(*ASK, "--executor", "slurm", *wanted, cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    assert [(row["force_decay"], row["failed"]) for row in rows_of(root)] == [("0", ""), ("0.1", "")]
    text = (root / "sbatch.text").read_text()
    for line in ("partition=gpu", "cpus-per-task=2", "licenses=a", "time=1440", "job-name=forcereg"):
        assert f"#SBATCH --{line}\n" in text
    assert "job 1: 1 of 2: force_decay=0,seed=1" in done.stderr and not (root / "sweep" / FOLDER).exists()


def job(root: Path, work: Any) -> Job:
    return Job(work, "call", Path("out"), str(root), (), 1 << 30)


def says(tell: Any, call: str) -> None:
    tell.note("here")
    raise KeyboardInterrupt


class Here(Slurm):
    """As one process of this machine, by submitit too."""

    cluster: ClassVar[str] = "debug"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_by_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    started = Here(job(tmp_path, says), 2, {"mem": "4G", "gres": "gpu:1"})
    assert [one.result() for one in started._jobs] == [INTERRUPTED] * 2  # the debug executor runs it when it is asked
    assert started.ended() == {0: "", 1: ""} and "here" in job(tmp_path, says).told(1).read_text()
    started.stop()
    started.kill()
    assert not list((tmp_path / "out" / FOLDER).glob("*slurm*"))
    again = Again().checkpoint(job(tmp_path, says), 1)
    assert again.function.__class__ is Again and again.args[1] == 1


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ForceregError, match="--executor slurm: there is no sbatch here; run it where jobs are submitted"
    ):
        Slurm(job(tmp_path, says), 1, {})


@pytest.mark.parametrize(("kind", "package", "extra"), [(Slurm, "submitit", "slurm"), (Ray, "ray", "ray")])
def test_without_the_extra(
    kind: Any, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'--executor {extra} needs {package}; install it with pip install "forcereg\[{extra}\]"'
    with pytest.raises(ForceregError, match=message):
        kind(job(tmp_path, says), 1, {})


RAY = """
import warnings; warnings.simplefilter("ignore")
import forcereg
found = forcereg.sweep("solver.prototxt", set={"force_decay": [0, 0.1]}, device="cpu", jobs=2, executor="ray",
                       resource={"num_cpus": 1}, observer=lambda event: print(event.kind, getattr(event, "text", "")))
print([run.failed for run in found.results])
"""


def test_a_sweep_by_ray(root: Path, long_form: bool) -> None:
    """Not among what the tests install: it is as large as torch's smallest builds, and starts servers."""
    pytest.importorskip("ray")
    if not long_form:
        pytest.skip("it starts servers, which takes a minute; --long runs it")
    env = {**os.environ, "PYTHONPATH": str(TOP), "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run([sys.executable, "-c", RAY], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['', '']", done.stdout + done.stderr
    assert len(rows_of(root)) == 2
