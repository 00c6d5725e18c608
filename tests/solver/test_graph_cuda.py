"""Graphs on a GPU: captured and replayed for real they train as the same solver does without."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from forcereg import registry
from forcereg.solver.graph import Graphed
from forcereg.solver.loop import Solver
from forcereg.system.capture import WARM_UP, CudaRecorder
from tests.solver.graphs import FORCE, IMAGE_RUN, SETTINGS, TWO_LAYERS, Waits
from tests.solver.nets import Recorder, batches, blobs_of, write_images, write_solver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """No choice among kernels by time, none that adds up in any order."""
    flags = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = flags


Inputs = Callable[[int, int], Mapping[str, Tensor]] | None


def trained(root: Path, extra: str, graph: bool, inputs: Inputs = batches, amp: str | None = None) -> Solver:
    recorder = Recorder()
    file = write_solver(root, f"display: 5 {extra}")
    solver = Solver(file, device="cuda", observers=[recorder], cuda_graph=graph, amp=amp)
    torch.backends.cudnn.benchmark = False
    solver.solve(inputs)
    assert [event.text for event in recorder.of("note") if "CUDA graphs" in event.text] == []
    return solver


def captured(solver: Solver) -> int:
    return sum(len(graphed._graphs) for graphed in solver.steps._graphed.values())


def assert_alike(found: Solver, expected: Solver) -> None:
    for name, blob in blobs_of(expected).items():
        torch.testing.assert_close(blobs_of(found)[name], blob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found._losses.mean(), expected._losses.mean(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    return tmp_path


@pytest.mark.parametrize("extra", SETTINGS.values(), ids=SETTINGS)
def test_settings(extra: str, two: Path) -> None:
    """Dropout included: both draw the same numbers."""
    plain, graphs = (trained(two, f"max_iter: 24 snapshot_after_train: false {extra}", on) for on in (False, True))
    assert (captured(plain), captured(graphs)) == (0, 2 if "force_iter" in extra else 1)
    assert_alike(graphs, plain)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(amp: str, two: Path) -> None:
    extra = f"max_iter: 24 snapshot_after_train: false {FORCE}"
    plain, graphs = (trained(two, extra, on, amp=amp) for on in (False, True))
    assert captured(graphs) == 1
    assert_alike(graphs, plain)


def test_images_with_tests_and_resuming(tmp_path: Path) -> None:
    write_images(tmp_path)
    plain, graphs = (trained(tmp_path, IMAGE_RUN, on, None) for on in (False, True))
    assert captured(graphs) == 3  # training, the same with the force measured, and tests
    assert_alike(graphs, plain)
    resumed = Solver(write_solver(tmp_path, f"display: 5 {IMAGE_RUN}"), device="cuda")
    torch.backends.cudnn.benchmark = False
    resumed.restore(tmp_path / "s_iter_9.solverstate.h5")
    resumed.solve()
    assert captured(resumed) == 3
    assert_alike(resumed, plain)


def test_a_capture_that_fails(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws on, the run goes to its end, and another solver can capture."""
    monkeypatch.setitem(registry.layer._known, "Waits", Waits)
    (two / "net.prototxt").write_text(TWO_LAYERS.replace('type: "ReLU"', 'type: "Waits"'))
    recorder = Recorder()
    solver = Solver(write_solver(two, "max_iter: 12"), device="cuda", observers=[recorder])
    solver.step(12, batches)
    (note,) = [event.text for event in recorder.of("note")]
    assert note.startswith("CUDA graphs are off in training: ")
    assert solver.updater.first_bad() == -1 and solver.updater.all_finite()
    torch.cuda.empty_cache()  # refused while a capture is under way
    (two / "net.prototxt").write_text(TWO_LAYERS)
    assert captured(trained(two, "max_iter: 12 snapshot_after_train: false", True)) == 1


def test_nothing_waits_for_the_device(two: Path) -> None:
    """Between displays an iteration never synchronises."""
    solver = Solver(write_solver(two, FORCE), device="cuda")
    data = {name: blob.cuda() for name, blob in batches(0, 0).items()}
    solver.step(WARM_UP + 2, data)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, that this is an experiment
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        torch.cuda.set_sync_debug_mode("error")
        solver.step(20, data)
    assert captured(solver) == 1


def test_random_numbers_go_on() -> None:
    """Each replay draws the numbers that a run would draw, and the state behind it is the same."""
    device = torch.device("cuda")
    states, draws = [], []
    for recorder in (None, CudaRecorder(torch.device("cuda", torch.cuda.current_device()))):
        torch.manual_seed(3)

        def work(batches: object) -> Tensor:
            return torch.rand(5, device=device) + torch.nn.functional.dropout(torch.ones(5, device=device))

        run = work if recorder is None else Graphed(work, recorder, lambda reason: pytest.fail(reason))
        draws.append(torch.stack([run([{}]).clone() for _ in range(WARM_UP + 4)]))
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*draws) and torch.equal(*states)
