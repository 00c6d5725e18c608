"""scripts/bench/train.py and all.sh run what they say on the same data; how long that takes decides no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import allocations
import cases
import numpy as np
import pytest
import torch
import train
from allocations import Allocation
from cases import CASES
from contest import Entrant, Memory, Result
from table import read_figures

from forcereg.system.shipped import configs_dir
from tests.conftest import TOP

NETS = [net for net in CASES if net != "alexnet"]
BENCH = TOP / "scripts" / "bench"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nets' files, with 200 random images or the digits."""
    folder = tmp_path_factory.mktemp("bench")
    for net in NETS:
        cases.prepare(net, folder, None, 200)
    return folder


@pytest.mark.parametrize("net", NETS)
def test_the_solver_is_the_shipped_one_without_end(root: Path, net: str) -> None:
    from forcereg.schema.text import read_solver

    shipped = read_solver(configs_dir() / CASES[net].file).message
    found = cases.make_solver(root, net)
    assert found.updater.regularizes and not found.test_nets
    assert found.param.display == min(CASES[net].turn, shipped.display) > 0
    for field in ("net", "base_lr", "momentum", "weight_decay", "lr_policy", "force_decay", "force_type"):
        assert getattr(found.param, field) == getattr(shipped, field)
    assert found.net.shapes["label"] == (CASES[net].batch,)
    assert not cases.make_solver(root, net, force=False).param.force_decay


@pytest.mark.parametrize("net", NETS)
def test_the_baselines_get_the_solvers_images(root: Path, net: str) -> None:
    images, labels = (np.load(root / net / f"{name}.npy") for name in ("images", "labels"))
    assert images.dtype == np.float32 and labels.dtype == np.int64 and len(images) == len(labels)
    (feed,) = cases.make_solver(root, net).net.feeds.values()
    batch = CASES[net].batch
    for start in range(0, len(images), batch):
        expected, classes = feed.next()
        assert images.shape[1:] == tuple(expected.shape[1:])
        np.testing.assert_array_equal(labels[start : start + batch], classes.numpy())
        if net != "resnet20":  # whose crops are random
            np.testing.assert_array_equal(images[start : start + batch], expected.numpy())


@pytest.mark.parametrize("net", NETS)
def test_every_contestant_trains(root: Path, net: str) -> None:
    entrants = train.entrants(net, root, quick=True)
    assert [one.name for one in entrants] == ["contiguous", "channels_last", "forcereg", "forcereg, no force"]
    for one in entrants:
        run_in_process(one)


def test_every_alexnet_runs_forward(root: Path) -> None:
    entrants = train.entrants("alexnet", root, quick=True)
    assert [one.name for one in entrants] == ["contiguous", "channels_last", "forcereg"]
    for one in entrants:
        run_in_process(one)


def run_in_process(entrant: Entrant) -> None:
    """One iteration."""
    module, _, function = entrant.target.partition(":")
    assert module == "train"
    getattr(train, function)(**entrant.options)(1)


def test_figures_compare_with_the_baselines() -> None:
    results = [
        Result("contiguous", [0.04], Memory(300, 100, 50)),
        Result("channels_last", [0.02], Memory(310, 110, 40)),
        Result("forcereg", [0.01], Memory(330, 120, 80)),
        Result("forcereg, no force", [0.005], Memory(1, 1, 1)),
    ]
    found = [(figure.what, figure.value, figure.goal) for figure in train.figures("lenet", results)]
    assert found == [
        ("time / contiguous", 0.25, 0.60),
        ("time / channels_last", 0.5, 0.85),
        ("peak memory / plain", 1.1, 1.1),
        ("the same above import torch", 2.0, None),
    ]


def test_allocations_know_phase_operation_and_life(root: Path) -> None:
    solver = cases.make_solver(root, "lenet")
    found = allocations.allocations(allocations.profiled(solver))
    blobs = solver.net.shapes
    conv1 = 4 * int(np.prod(blobs["conv1"]))
    assert {one.phase for one in found} <= set(allocations.PHASES)
    assert {one.life for one in found} <= {"operation", "step", "beyond"}
    assert any(one.phase == "forward" and one.size == conv1 for one in found)
    assert allocations.gradients(solver) == 4 * (20 * 25 + 20 + 50 * 500 + 50 + 500 * 800 + 500 + 10 * 500 + 10)
    assert allocations.activations(solver) >= conv1
    for feed in solver.net.feeds.values():
        assert "next" not in vars(feed)  # marked only while profiled


def test_allocations_of_known_operations() -> None:
    weight = torch.ones(64, 64, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.profiler.record_function("phase:update"):
            kept = torch.zeros(1000)
            torch.ones(500)
        (weight @ weight).sum().backward()
    found = allocations.allocations(profiler)
    assert Allocation("update", "aten::zeros", 4000, "beyond") in found
    assert Allocation("update", "aten::ones", 2000, "step") in found
    assert Allocation("forward", "aten::matmul", 4 * 64 * 64, "step") in found
    assert any(one.phase == "backward" and one.operation == "MmBackward0" for one in found)
    assert kept.numel() == 1000


def run_script(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    return subprocess.run(args, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_quick_run(tmp_path: Path) -> None:
    done = run_script(sys.executable, str(BENCH / "train.py"), "lenet", "--quick", "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    machine, figures = read_figures(tmp_path / "out.json")
    assert machine in done.stdout and "1 threads" in machine
    assert [figure.what for figure in figures][:2] == ["time / contiguous", "time / channels_last"]
    details = json.loads((tmp_path / "out.json").read_text())["details"]["lenet"]
    assert list(details) == ["contiguous", "channels_last", "forcereg", "forcereg, no force"]
    assert details["forcereg"]["seconds"][0] > 0


def test_profile_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allocations.profile_step(cases.make_solver(root, "lenet"))
    out = capsys.readouterr().out
    assert "Self CPU time total" in out and "aten::mkldnn_convolution" in out
    assert "allocations of 4096 bytes and more" in out and "to compare: the net's blobs" in out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        pytest.param(["train.py", "lent"], 2, "unknown net 'lent'; choose from lenet, cifar10_full", id="net"),
        pytest.param(["train.py", "lenet", "--mnist", "/nonexistent"], 1, "/nonexistent: no train-images", id="data"),
        pytest.param(["all.sh", "--help"], 0, "--mnist IDX_DIR", id="all-help"),
        pytest.param(["all.sh", "--quik"], 2, "unknown argument '--quik'", id="all-typo"),
        pytest.param(["all.sh", "--mnist"], 1, "--mnist needs a folder", id="all-no-value"),
    ],
)
def test_arguments(args: list[str], code: int, says: str, tmp_path: Path) -> None:
    script, *rest = args
    done = run_script("bash" if script.endswith(".sh") else sys.executable, str(BENCH / script), *rest, cwd=tmp_path)
    assert done.returncode == code
    assert says in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_without_an_environment(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": "/nonexistent/python"}
    call = ["bash", str(BENCH / "all.sh")]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "scripts/setup.sh" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("quick", [True, False])
def test_all_runs_every_part_and_the_table(tmp_path: Path, quick: bool) -> None:
    fake, calls = tmp_path / "python", tmp_path / "calls"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    fake.chmod(0o755)
    given = ["--mnist", "a b", "--cifar", "c", "--readme"] + ["--quick"] * quick
    env = {**os.environ, "PYTHON": str(fake), "TMPDIR": str(tmp_path)}
    subprocess.run(["bash", str(BENCH / "all.sh"), *given], cwd=tmp_path, env=env, check=True)
    out = Path(calls.read_text().split()[-1]).parent
    tail = "--quick --json" if quick else "--json"
    assert calls.read_text().splitlines() == [
        f"{BENCH}/train.py --mnist a b --cifar c {tail} {out}/train.json",
        f"{BENCH}/startup.py --mnist a b {tail} {out}/startup.json",
        f"{BENCH}/growth.py {tail} {out}/growth.json",
        f"{BENCH}/table.py --readme {BENCH}/README.md {out}/train.json {out}/startup.json {out}/growth.json",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"python", "calls"}
