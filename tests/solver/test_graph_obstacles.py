"""Where graphs can't be, and their parts: Graphed, and the tape that stands in for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forcereg
from forcereg import registry
from forcereg.layers.neuron import Elementwise
from forcereg.solver.graph import Graphed, obstacle
from forcereg.system.capture import WARM_UP
from tests.solver.graphs import TWO_LAYERS, Waits, both, notes, trained
from tests.solver.nets import batches
from tests.solver.tape import Tape


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    return tmp_path


FILTERED = """
layer { name: "ones" type: "Power" bottom: "y" top: "sel" power_param { scale: 0 shift: 1 } }
layer { name: "first" type: "Slice" bottom: "sel" top: "one" top: "rest" slice_param { slice_point: 1 } }
layer { name: "drop_rest" type: "Silence" bottom: "rest" }
layer { name: "filter" type: "Filter" bottom: "x" bottom: "one" top: "kept" }
layer { name: "drop_kept" type: "Silence" bottom: "kept" }
"""


def test_a_layer_that_waits(two: Path) -> None:
    (two / "net.prototxt").write_text(TWO_LAYERS + FILTERED)
    plain, graphs = both(two, "max_iter: 8 snapshot_after_train: false")
    assert notes(graphs) == [
        "CUDA graphs are off in training: layer 'filter' of type Filter waits for the device or runs code of its own"
    ]
    assert graphs.tape is not None and graphs.tape.recorded == 0
    graphs.recorder.events = [event for event in graphs.recorder.events if event.kind != "note"]
    graphs.assert_equals(plain)


def test_what_only_the_recording_finds(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One note, and nothing is lost."""
    monkeypatch.setitem(registry.layer._known, "Waits", Waits)
    monkeypatch.setitem(registry.layer._about, "Waits", registry.About())
    (two / "net.prototxt").write_text(TWO_LAYERS.replace('type: "ReLU"', 'type: "Waits"'))
    plain, graphs = both(two, "max_iter: 8 momentum: 0.9 snapshot_after_train: false")
    (note,) = notes(graphs)
    assert note.startswith("CUDA graphs are off in training: ") and "operation not permitted" in note
    graphs.recorder.events = [event for event in graphs.recorder.events if event.kind != "note"]
    graphs.assert_equals(plain)


def test_other_peoples_layers_have_to_say_so() -> None:
    class Mine(Elementwise):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Safe(Mine):
        capturable = True

    assert (Mine.capturable, Safe.capturable, Elementwise.capturable) == (False, True, True)


def test_batches_of_other_shapes(two: Path) -> None:
    def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
        return {name: blob[: 4 - (iteration == 6)] for name, blob in batches(iteration, sub).items()}

    plain, graphs = both(two, "max_iter: 10 snapshot_after_train: false", inputs)
    assert notes(graphs) == ["CUDA graphs are off in training: its batches change their shapes"]
    assert graphs.tape is not None and graphs.tape.replayed == 6 - WARM_UP
    graphs.recorder.events = [event for event in graphs.recorder.events if event.kind != "note"]
    graphs.assert_equals(plain)


def test_hooks_are_called(two: Path) -> None:
    net = forcereg.load_net(TWO_LAYERS, phase="TRAIN")
    assert obstacle(net) is None
    net.module("ip").register_forward_hook(lambda *_: None)
    assert obstacle(net) == "hooks are registered on it"


def test_switched_off(two: Path) -> None:
    outcome = trained(two, Tape(), "max_iter: 6 snapshot_after_train: false", cuda_graph=False)
    assert outcome.tape is not None and outcome.tape.ran == 0 and notes(outcome) == []


# -- the parts


def test_a_graph_for_each_key() -> None:
    total, seen = torch.zeros(2), list[str]()
    tape, add = Tape(), {"sign": 1.0}
    graphed = Graphed(lambda given: total.add_(given[0]["x"], alpha=add["sign"]), tape, seen.append)
    for count in range(1, 8):
        graphed([{"x": torch.full((2,), float(count))}], "plus")
    assert total.tolist() == [28, 28] and tape.recorded == 1
    add["sign"] = -1.0
    graphed([{"x": torch.full((2,), 8.0)}], "minus")
    graphed([{"x": torch.full((2,), 3.0)}], "plus")
    assert total.tolist() == [23, 23] and (tape.recorded, tape.ran) == (2, WARM_UP) and seen == []


def test_the_tape_undoes_what_recording_did() -> None:
    kept, random = torch.ones(3), torch.get_rng_state()
    replay, result = Tape().record(lambda: kept.mul_(2) + torch.rand(3))
    assert kept.tolist() == [1, 1, 1] and torch.equal(torch.get_rng_state(), random) and result.isnan().all()
    replay()
    assert kept.tolist() == [2, 2, 2] and not result.isnan().any()
    torch.set_rng_state(random)
    assert torch.equal(result, kept + torch.rand(3))


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda x: x.sum().item(), id="item"),
        pytest.param(lambda x: x[x > 0], id="mask"),
        pytest.param(lambda x: x.nonzero(), id="nonzero"),
        pytest.param(lambda x: x + torch.tensor([1.0]), id="from-the-host"),
        pytest.param(lambda x: bool((x > 0).all()), id="branch"),
    ],
)
def test_the_tape_refuses_what_cuda_refuses(work: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Tape().record(lambda: work(torch.ones(2).mul_(2)))
