"""Training by several real processes over gloo: equal to one process, tests, resume, requests, ranks that die."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.solver import launch
from forcereg.solver.distributed import Group
from forcereg.solver.loop import Solver
from forcereg.solver.resume import resume_latest
from tests.conftest import TOP, RunCli
from tests.solver import ranks
from tests.solver.nets import Recorder, blobs_of, write_images, write_solver

SIZES = pytest.mark.parametrize("size", [2, 4], ids=lambda size: f"{size}-ranks")
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranks.write_data(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def results(root: Path) -> dict[int, dict[str, Any]]:
    """By number of ranks what each run returned on rank 0; 4 ranks go on where 2 stopped."""
    command = [sys.executable, "-m", "tests.solver.ranks", str(root), "2", "4"]
    done = subprocess.run(command, cwd=TOP, env={**os.environ, **ENV}, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {size: pickle.loads((root / f"results_{size}.pickle").read_bytes()) for size in (2, 4)}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, blob in expected.items():
        assert found[name].dtype == blob.dtype
        torch.testing.assert_close(found[name], blob, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_told(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    """The same events with the same losses, in Caffe's six digits or so."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], rel=2e-5, abs=2e-5)


@SIZES
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("setting", ranks.SETTINGS)
def test_ranks_equal_one_process(
    setting: str, kind: str, size: int, results: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    """After 20 iterations, with the same records in one batch; losses and means of tests too."""
    name = f"{setting}-{kind}"
    blobs, events = results[size][name]
    expected, told = ranks.RUNS[name](ranks.write_data(tmp_path), Group(), size)
    assert_close(blobs, expected, TOLERANCE[kind])
    if setting == "sparse":
        assert all(torch.equal(blobs[name] == 0, blob == 0) for name, blob in expected.items())
        assert 0.1 < float((expected["ip/0"] == 0).double().mean()) < 0.9
    if "display" in ranks.SETTINGS[setting][1]:
        assert_told(events, told)


@SIZES
def test_global_batch_equals_one_process(size: int, results: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    expected, told = ranks.divided(ranks.write_data(tmp_path), Group())
    blobs, events = results[size]["divided"]
    assert_close(blobs, expected, TOLERANCE["float32"])
    assert_told(events, told)


def test_resume_with_other_numbers_of_ranks(results: dict[int, dict[str, Any]], root: Path, tmp_path: Path) -> None:
    """6 iterations by 2 ranks, 6 by 4 and 6 alone are 18 alone."""
    resumed = ranks.part(root, Group())
    assert sorted(path.name for path in root.glob("part_iter_*.solverstate.h5")) == [
        f"part_iter_{at}.solverstate.h5" for at in (12, 18, 6)
    ]
    ranks.write_data(tmp_path)
    for found in (results[2]["part"], results[4]["part"], resumed):
        assert_close(found, ranks.part(tmp_path, Group()), TOLERANCE["float32"])


@SIZES
def test_requests_of_one_rank_are_all_ranks(size: int, results: dict[int, dict[str, Any]]) -> None:
    """One chance to agree later: in training that is an iteration, in each test there are as many as common batches."""
    chances = 9 // size  # of 9 batches, in the tests at 0, 7, 14 ...
    asked = [7 * ((call - 1) // chances) for call in (ranks.SAVE, ranks.STOP)]
    assert results[size]["requests"]["training"] == (ranks.STOP + 1, [ranks.SAVE + 1, ranks.STOP + 1], True)
    assert results[size]["requests"]["test"] == (asked[1], asked, True)


@SIZES
def test_ranks_test_with_rank_0s_statistics(size: int, results: dict[int, dict[str, Any]]) -> None:
    differed, behind = results[size]["statistics"]
    assert differed
    assert all(statistics == behind[0] for statistics in behind)


@SIZES
def test_dropout_differs_between_ranks_and_resumes_on_each(size: int, results: dict[int, dict[str, Any]]) -> None:
    found = results[size]["dropout"]
    assert_close(found["again"], found["whole"], 0)
    assert len({tuple(drawn) for drawn in found["drawn"]}) == size


@SIZES
def test_ranks_average_alike_and_go_on(size: int, results: dict[int, dict[str, Any]]) -> None:
    (learned, tested, events, names), again = (results[size]["averaged"][run] for run in ("whole", "again"))
    assert all(torch.equal(one[name], value) for one in learned for name, value in learned[0].items())
    assert all(one == tested[0] for one in tested)  # rank 0's statistics
    assert names == [["accuracy", "loss", "accuracy_ema", "loss_ema"]]
    assert_close(again[0][0], learned[0], 0 if size == 2 else 1e-6)
    assert_told(again[2], events)


@SIZES
def test_trouble_of_one_rank_is_all_ranks(size: int, results: dict[int, dict[str, Any]]) -> None:
    """A loss that isn't finite stops all in the same iteration; weights that differ are not saved."""
    found = results[size]["trouble"]
    assert len(set(found["loss"])) == len(set(found["astray"])) == 1
    assert re.match(r"3: .*the loss is not finite at iteration 2;", found["loss"][0])
    assert f"the weights of rank {size - 1} are no longer those of rank 0" in found["astray"][0]


@SIZES
def test_overflow_of_one_rank_is_all_ranks(size: int, results: dict[int, dict[str, Any]]) -> None:
    """In float16 its step is left out by all, and all halve their scale."""
    assert results[size]["overflow"] == [({"scale": 2.0**15, "good": 0, "skipped": 1}, 0.0)] * size


# -- the command


MODULE = """
import os, signal, time
from forcereg.layers.base import Layer
from forcereg.registry import layer

@layer("Trouble", "")
class Trouble(Layer):
    passes = 0

    def __init__(self, spec, shapes):
        super().__init__(spec, shapes)
        self.out_shapes = tuple(shapes)

    def forward(self, bottom):
        if self.training:
            Trouble.passes += 1
            if Trouble.passes == 7 and os.environ["RANK"] == "1" and not os.path.exists("died"):
                open("died", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            elif Trouble.passes == 3 and os.environ["RANK"] == "0" and "DIES" in os.environ:
                heard, save = [], signal.getsignal(signal.SIGHUP)
                signal.signal(signal.SIGHUP, lambda *args: heard.append(save(*args)))
                os.kill(os.getppid(), signal.SIGHUP)
                while not heard:
                    time.sleep(0.01)
        return bottom
"""


@pytest.fixture
def crashing(tmp_path: Path) -> Path:
    """A folder with a solver whose net has a layer that ends its process, or asks the launching one to save."""
    write_images(tmp_path, ranks.CONV.replace('type: "ReLU"', 'type: "Trouble"').replace("BATCH", "2"))
    (tmp_path / "trouble.py").write_text(MODULE)
    write_solver(tmp_path, 'max_iter: 10 snapshot: 5 snapshot_prefix: "s" test_iter: 2 test_interval: 5')
    return tmp_path


def alone(root: Path) -> Solver:
    """One process that trains on the same records, without the trouble."""
    (root / "net.prototxt").write_text(ranks.CONV.replace("ReLU", "Split").replace("BATCH", "4"))
    return Solver(root / "solver.prototxt", observers=[Recorder()])


TRAIN = ("train", "--import", "trouble", "--solver", "solver.prototxt")


def test_death_of_a_rank(crashing: Path, run_cli: RunCli) -> None:
    """The others end too, with one line; a signal to the launching process has had its effect, snapshots are usable."""
    env = {**ENV, "PYTHONPATH": os.pathsep.join((str(crashing), str(TOP))), "DIES": "1"}
    died = run_cli(*TRAIN, "--nproc", "2", cwd=crashing, env=env)
    assert died.returncode == 1
    assert died.stderr.splitlines()[-1] == (
        "forcereg: rank 1 was killed by SIGKILL and the others were ended; go on from the last snapshot with "
        "--resume auto"
    )
    assert "Traceback" not in died.stderr
    assert died.stderr.count("forcereg:") == 1
    assert died.stderr.count("] Solving ") == 1
    saved = {int(path.name.split(".")[0][7:]) for path in crashing.glob("s_iter_*.solverstate.h5")}
    assert saved == {4, 5}  # SIGHUP came in the third iteration, and all ranks knew in the next
    solver = alone(crashing)
    assert resume_latest(solver) == crashing / f"s_iter_{max(saved)}.solverstate.h5"
    solver.solve()
    whole = alone(crashing)
    whole.solve()
    assert_close(blobs_of(solver), blobs_of(whole), TOLERANCE["float32"])


def test_torchrun_goes_on_behind_a_death(crashing: Path) -> None:
    """Killed once, it ends with the weights of an undisturbed run; here on two machines, as far as it can tell."""
    env = {**os.environ, **ENV, "PYTHONPATH": os.pathsep.join((str(crashing), str(TOP))), "GLOO_SOCKET_IFNAME": "lo"}
    with launch.free_port() as port:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "-m", "forcereg",
        ]  # fmt: skip
        nodes = [
            subprocess.Popen([*command, *TRAIN], cwd=crashing, env=env, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = "".join(node.communicate(timeout=240)[1] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert re.search(r"^forcereg: rank 0: lost contact with another rank \(.*--resume auto$", said, re.MULTILINE)
    assert said.count("Restoring previous solver status") == 1
    whole, found = alone(crashing), alone(crashing)
    assert found.load_weights(crashing / "s_iter_10.caffemodel.h5").loaded
    whole.solve()
    assert_close(blobs_of(found), blobs_of(whole), TOLERANCE["float32"])
