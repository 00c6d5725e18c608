"""The container's recipe and the examples for clusters, by linters and stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TOP

SCRIPTS = TOP / "scripts"
CLUSTER = SCRIPTS / "cluster"
RULES = "{extends: default, rules: {line-length: {max: 120}}}"
LINTED = {
    "Dockerfile": ["hadolint"],
    "cluster/train.k8s.yaml": ["yamllint", "--strict", "-d", RULES],
    **{path.relative_to(SCRIPTS).as_posix(): ["shellcheck"] for path in sorted(CLUSTER.glob("*.sh"))},
}
"""Files below scripts/ and what looks at them."""


@pytest.mark.parametrize("name", LINTED)
def test_linters_find_nothing(name: str) -> None:
    tool, *options = LINTED[name]
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{tool} isn't installed (the extra dev)")
    done = subprocess.run([found, *options, SCRIPTS / name], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_image_is_built_from_is_there() -> None:
    """Each file that is copied exists, is in what Docker is sent, and all that the wheel is built of is copied."""
    text = (SCRIPTS / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)", text, re.M) for word in line.split()[:-1]]
    sent = (SCRIPTS / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((TOP / name).exists() and f"!{name}" in sent for name in copied)
    project = (TOP / "pyproject.toml").read_text()
    needed = re.findall(r'"/(\w+)"', re.search(r"^include = .*", project, re.M)[0])  # type: ignore[index]
    assert {*needed, "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} == {*copied}
    extras = re.search(r"^ARG EXTRAS=(.*)", text, re.M)[1].split(",")  # type: ignore[index]
    assert all(re.search(rf"^{name} = \[", project, re.M) for name in extras)
    assert text.rindex("USER 1000") > text.rindex("RUN ") and text.count("constraints.txt") >= 3


def run(script: str, *args: str, tools: Path, **env: str) -> subprocess.CompletedProcess[str]:
    whole = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", **env}
    return subprocess.run(["bash", CLUSTER / script, *args], env=whole, capture_output=True, text=True, check=False)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Stand-ins for Slurm's commands: srun prints what it would run."""
    for name, text in {"srun": 'printf "%s\\n" "$@"', "scontrol": "echo first; echo second"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_a_training_on_several_machines(tools: Path) -> None:
    of = {"ID": "12345", "NODELIST": "a[1-2]", "NUM_NODES": "2"}
    job = {f"SLURM_JOB_{name}": value for name, value in of.items()} | {"SLURM_GPUS_ON_NODE": "4"}
    done = run("train.slurm.sh", "my solver.prototxt", "--keep", "3", tools=tools, **job)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"] and "first:32345" in words
    assert words[-7:] == ["train", "--resume", "auto", "--solver", "my solver.prototxt", "--keep", "3"]
    assert run("train.slurm.sh", tools=tools, **job).returncode == 2
    outside = run("train.slurm.sh", "solver.prototxt", tools=tools)
    assert outside.returncode == 2 and "this isn't a job of Slurm's; submit it by sbatch" in outside.stderr


def test_runs_shared_by_an_array(tools: Path) -> None:
    done = run("sweep.slurm.sh", "sweep", "--set", "force_decay=0,1", tools=tools)
    assert done.stdout.splitlines() == ["forcereg", "sweep", "--set", "force_decay=0,1"]
    wrong = run("sweep.slurm.sh", "train", tools=tools)
    assert wrong.returncode == 2 and "expected sweep or tune and its options, found 'train'" in wrong.stderr
