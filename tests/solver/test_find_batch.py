"""The largest batch that fits: the search, what is tried, and what is told; a GPU's memory is a limit here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import forcereg
from forcereg.errors import ForceregError
from forcereg.schema.text import read_solver
from forcereg.solver import find_batch
from forcereg.solver.find_batch import CLOSE, Batched, largest
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.solver.nets import IMAGES, Recorder, blobs_of, write_images, write_solver


@given(limit=st.integers(0, 5000), start=st.integers(1, 3000), most=st.integers(1, 4000))
def test_the_search_comes_close_in_few_trials(limit: int, start: int, most: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found, beyond = largest(fits, start, most)
    true = min(limit, most)
    assert found <= true and (found == true or true - found <= max(1, found // CLOSE))
    assert beyond is None or (found < beyond and beyond > limit)
    assert found == 0 or found in tried
    assert (beyond is None) == (limit >= most)
    assert tried[0] == min(start, most) and len(tried) == len({*tried}) <= 26 and max(tried) <= most


SETTINGS = """
momentum: 0.9 max_iter: 3 display: 1 snapshot: 1 snapshot_prefix: "s" test_iter: 2 test_interval: 1 ema_decay: 0.9
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    write_solver(tmp_path, SETTINGS)
    return tmp_path


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`memory(11)` lets no iteration of a larger batch run; what `memory.tried` were the batches of trials."""

    class Memory:
        def __init__(self) -> None:
            self.tried: list[int] = []

        def __call__(self, limit: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
            step = Solver.step

            def limited(solver: Solver, n: int, inputs: Any = None) -> Tensor:
                self.tried.append(batch_of(solver))
                if self.tried[-1] > limit:
                    raise error("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return step(solver, n, inputs)

            monkeypatch.setattr(find_batch, "check_device", lambda device: None)
            monkeypatch.setattr(Solver, "step", limited)

    return Memory()


def batch_of(solver: Solver) -> int:
    return solver.net.shapes["data"][0]


def test_it_is_found_and_told_and_nothing_is_trained(root: Path, memory: Any) -> None:
    memory(11)
    before, told = {path.name for path in root.iterdir()}, Recorder()
    asked = {"keep_best": "accuracy", "patience": 1, "callback": lambda event, solver: heard.append(event.kind)}
    heard: list[str] = []
    solver = forcereg.train("solver.prototxt", find_batch=True, observer=told, **asked)
    assert "progress" not in heard  # of a trial
    assert memory.tried == [6, 12, 9, 10, 11]
    assert (batch_of(solver), solver.test_nets[0].shapes["data"][0], solver.iter) == (11, 5, 0)
    assert {path.name for path in root.iterdir()} == before
    notes = [event.text for event in told.of("note")]
    assert notes[:2] == ["A batch of 6 fits", "A batch of 12 does not fit"]
    assert notes[-1] == (
        "The largest batch found is 11 (12 does not fit); write batch_size: 11 in net.prototxt:3: layer 'data', which "
        "has 6, and see to base_lr, which was chosen for that"
    )
    assert not (told.of("train") or told.of("test") or told.of("warning"))


def test_a_solver_with_it_trains_as_one_that_has_it_written(
    root: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(11)
    found = forcereg.train("solver.prototxt", find_batch=True)
    found.solve()
    # and begins with the weights that are asked for
    weights = forcereg.train("solver.prototxt", find_batch=True, weights="s_iter_3.caffemodel.h5")
    assert all(map(torch.equal, blobs_of(weights).values(), blobs_of(found).values()))
    other = root / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    write_images(other, IMAGES.replace("batch_size: 6", "batch_size: 11"))
    written = Solver(write_solver(other, SETTINGS))
    written.solve()
    ours, theirs = blobs_of(found), blobs_of(written)
    assert all(torch.equal(ours[name], blob) for name, blob in theirs.items())


def test_no_more_records_are_tried_than_there_are(root: Path, memory: Any) -> None:
    memory(10**6)
    told = Recorder()
    solver = forcereg.train("solver.prototxt", find_batch=True, observer=told)
    assert memory.tried == [6, 12, 20] and batch_of(solver) == 20
    assert told.of("note")[-1].text.startswith("The largest batch found is 20 (more than 20 aren't tried); write")


def test_a_net_that_never_fits_and_an_error_that_is_no_shortage(root: Path, memory: Any) -> None:
    memory(0)
    with pytest.raises(ForceregError, match="not even a batch of 1 fits the GPU's memory; use smaller layers"):
        forcereg.train("solver.prototxt", find_batch=True)
    assert memory.tried == [6, 3, 1]
    memory(0, KeyError)
    with pytest.raises(KeyError):
        forcereg.train("solver.prototxt", find_batch=True)


def test_a_graph_that_is_given_up_for_lack_of_memory_does_not_fit(
    root: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(8)
    step = Solver.step

    def noted(solver: Solver, n: int, inputs: Any = None) -> Tensor:
        if batch_of(solver) == 7:
            solver.emit("note", text="CUDA graphs are off in training: CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(solver, n, inputs)

    monkeypatch.setattr(Solver, "step", noted)
    assert batch_of(forcereg.train("solver.prototxt", find_batch=True)) == 6


def test_tests_stay_those_of_the_solver(root: Path) -> None:
    file = read_solver("solver.prototxt")
    made = Batched.of(file, None, ()).at(9).message
    assert list(made.test_net) == ["net.prototxt"] and not made.HasField("net")
    assert [layer.data_param.batch_size for layer in made.train_net_param.layer[:2]] == [9, 5]
    assert file.message.net == "net.prototxt"


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (
            IMAGES.partition("layer")[0] + 'layer { name: "in" type: "Input" top: "x" }',
            "net.prototxt: no data layer of the training net has a batch_size to be found; expected one of type Data,",
        ),
        (
            IMAGES + 'layer { name: "more" type: "Data" top: "m" data_param { source: "train_lmdb" batch_size: 4 } }',
            "net.prototxt: its data layers have several batches, 4, 6; give them one",
        ),
    ],
)
def test_nets_without_one_batch_are_refused(net: str, says: str, root: Path) -> None:
    (root / "net.prototxt").write_text(net)
    with pytest.raises(ForceregError) as caught:
        Batched.of(read_solver("solver.prototxt"), None, ())
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("", 1, "the largest batch is looked for in a GPU's memory, and this runs on the CPU; choose a batch_size by"),
        ("--resume auto", 2, "--find-batch and --resume are both given; looking for a batch trains nothing"),
        ("--gradients report --nproc 2", 2, "--find-batch and --gradients report are both given; one looks for a"),
        ("--nproc 2", 2, "--find-batch is for one process and its GPU; each of several takes as large a batch"),
    ],
)
def test_what_does_not_go_is_one_line(args: str, code: int, says: str, root: Path, run_cli: RunCli) -> None:
    done = run_cli("train", "--solver", "solver.prototxt", "--find-batch", *args.split(), cwd=root)
    assert done.returncode == code and done.stderr.splitlines()[-1].startswith(f"forcereg: {says}")
    assert "Traceback" not in done.stderr and "Optimization Done" not in done.stderr
