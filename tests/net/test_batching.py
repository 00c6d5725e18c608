"""Several test batches in one pass give the numbers that they give one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import forcereg.registry as registry
from forcereg.layers import Layer
from forcereg.layers.base import joined
from forcereg.layers.module import ModuleLayer
from forcereg.net import batching, scoring
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.net.scoring import Score, Tally, score
from forcereg.schema.spec import LayerSpec
from forcereg.solver.debug import Watch
from forcereg.solver.graph import Graphed
from forcereg.solver.loop import Solver
from forcereg.system.capture import WARM_UP
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import load_layer
from tests.small_nets import ip
from tests.solver.nets import IMAGES, Recorder, write_images, write_solver
from tests.solver.tape import Tape

CLASSES = 4
LABELS = f'data_filler {{ type: "uniform" min: 0 max: {CLASSES} }}'


def data(batch: int, labels: str = LABELS) -> str:
    """Random images (batch, 2, 5, 5) and one label each."""
    return (
        'layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { '
        f"shape {{ dim: {batch} dim: 2 dim: 5 dim: 5 }} shape {{ dim: {batch} }} "
        f'data_filler {{ type: "gaussian" std: 1 }} {labels} }} }}'
    )


def one(kind: str, bottom: str, top: str, param: str = "", name: str = "") -> str:
    """A layer of one type."""
    bottoms = " ".join(f'bottom: "{blob}"' for blob in bottom.split())
    tops = " ".join(f'top: "{blob}"' for blob in top.split())
    return f'layer {{ name: "{name or kind + "_" + top}" type: "{kind}" {bottoms} {tops} {param} }}'


CONV = one(
    "Convolution", "data", "x", 'convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } }'
)
BODIES = {
    "conv": CONV + one("ReLU", "x", "x"),
    "bn": CONV + one("BatchNorm", "x", "x") + one("Scale", "x", "x", "scale_param { bias_term: true }"),
    "lrn": CONV + one("LRN", "x", "y") + one("Pooling", "y", "x2", "pooling_param { kernel_size: 2 }"),
    "drop": CONV + one("Dropout", "x", "x") + one("Flatten", "x", "x2"),
    "branches": CONV + one("Sigmoid", "x", "y") + one("Concat", "x y", "z") + one("Slice", "z", "p q")
    + one("Eltwise", "p q", "x2"),
    "none": one("Reshape", "data", "x", "reshape_param { shape { dim: 0 dim: -1 } }"),
}  # fmt: skip
HEADS = {
    "loss": one("SoftmaxWithLoss", "fc label", "loss"),
    "ignored": one("SoftmaxWithLoss", "fc label", "loss", "loss_param { ignore_label: 0 }")
    + one("Accuracy", "fc label", "ac0", "accuracy_param { ignore_label: 0 }"),
    "accuracy": one("Accuracy", "fc label", "acc") + one("Accuracy", "fc label", "acc2", "accuracy_param { top_k: 2 }"),
    "classes": one("Accuracy", "fc label", "acc accs"),
    "softmax": one("SoftmaxWithLoss", "fc label", "loss prob", "loss_param { normalization: BATCH_SIZE }"),
    "full": one("SoftmaxWithLoss", "fc label", "loss", "loss_param { normalization: FULL } loss_weight: 0.3"),
    "sum": one("SoftmaxWithLoss", "fc label", "loss", "loss_param { normalization: NONE }"),
    "other losses": one("HingeLoss", "fc label", "hinge") + one("EuclideanLoss", "fc fc2", "euclid"),
    "items": one("Softmax", "fc", "prob") + one("Silence", "label", ""),
    "argmax": one("ArgMax", "fc", "best") + one("Silence", "label", ""),
    "weighted": one("Power", "fc", "scaled", "power_param { scale: 0.1 } loss_weight: 2") + one("Silence", "label", ""),
}


def net_of(body: str, heads: list[str], batch: int) -> Net:
    """A test net that feeds itself."""
    last = "x2" if '"x2"' in BODIES[body] else "x"
    both = "".join(HEADS[head].replace('top: "', f'top: "{index}').replace('name: "', f'name: "{index}')
                   for index, head in enumerate(heads))  # fmt: skip
    text = data(batch) + BODIES[body] + ip("fc", last, "fc", CLASSES) + ip("fc2", last, "fc2", CLASSES) + both
    return load_net(text + one("Silence", "fc2", "", name="hush"), phase="TEST", seed=3)


def outputs_of(net: Net, iterations: int, **options: Any) -> tuple[Score, list[dict[str, Tensor]]]:
    """The means, and the outputs of each batch."""
    seen: list[dict[str, Tensor]] = []

    def after(index: int, outputs: Mapping[str, Tensor]) -> None:
        assert index == len(seen)
        seen.append({name: blob.clone() for name, blob in outputs.items()})

    return score(net, iterations, after=after, **options), seen


def assert_same(found: tuple[Score, list[dict[str, Tensor]]], expected: tuple[Score, list[dict[str, Tensor]]]) -> None:
    """Accuracies are equal, all else up to the last bits."""
    assert found[0].batches == expected[0].batches
    assert [(o.name, o.weight) for o in found[0].outputs] == [(o.name, o.weight) for o in expected[0].outputs]
    assert found[0].loss == pytest.approx(expected[0].loss, rel=1e-6, abs=1e-6)
    for mine, its in zip(found[0].outputs, expected[0].outputs, strict=True):
        assert mine.value == pytest.approx(its.value, rel=1e-6, abs=1e-6)
        assert "ac" not in mine.name or mine.value == its.value
    for mine, its in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)


@given(
    body=st.sampled_from(sorted(BODIES)),
    heads=st.lists(st.sampled_from(sorted(HEADS)), min_size=1, max_size=2, unique=True),
    batch=st.integers(1, 4),
    iterations=st.integers(0, 7),
    at_once=st.integers(2, 5),
)
def test_any_number_at_once_gives_the_same(
    body: str, heads: list[str], batch: int, iterations: int, at_once: int
) -> None:
    apart, together = net_of(body, heads, batch), net_of(body, heads, batch)
    assert batching.joinable(together)
    passes: list[int] = []
    expected = outputs_of(apart, iterations, at_once=1)
    found = outputs_of(together, iterations, at_once=at_once, before=lambda index: not passes.append(index))
    assert passes == list(range(0, iterations, at_once))
    if iterations:
        assert_same(found, expected)
    assert together.feeds["data"].state_dict() == apart.feeds["data"].state_dict()


# -- which nets

PRELU_LIKE = one("PReLU", "x", "x")
RANDOM = one("Pooling", "x", "x2", "pooling_param { kernel_size: 2 pool: STOCHASTIC }")
MORE = {
    "mvn": (one("MVN", "x", "y"), True),
    "prelu": (PRELU_LIKE, True),
    "stochastic pooling, in tests a mean": (RANDOM, True),
    "scale by a blob's items": (
        one("Reduction", "x", "m", "reduction_param { axis: 2 }")
        + one("Scale", "x m", "y", "scale_param { axis: 0 }"),
        True,
    ),
    "scale with a bias for each item": (
        one("Reduction", "x", "m", "reduction_param { axis: 2 }")
        + one("Scale", "x m", "y", "scale_param { axis: 0 bias_term: true }"),
        False,
    ),
    "scale over items": (one("Scale", "x", "y", "scale_param { axis: 0 }"), False),
    "statistics of the batch": (one("BatchNorm", "x", "y", "batch_norm_param { use_global_stats: false }"), False),
    "softmax over items": (one("Softmax", "x", "y", "softmax_param { axis: 0 }"), False),
    "concat of items": (one("Concat", "x x", "y", "concat_param { axis: 0 }"), False),
    "slice of items": (one("Slice", "x", "y z", "slice_param { axis: 0 }"), False),
    "inner product over items": (ip("over", "x", "y", 2, param="axis: 0"), False),
    "flatten with items": (one("Flatten", "x", "y", "flatten_param { axis: 0 }"), False),
    "reshape behind items": (one("Reshape", "x", "y", "reshape_param { axis: 1 shape { dim: -1 } }"), True),
    "reshape that holds the batch": (one("Reshape", "x", "y", "reshape_param { shape { dim: 4 dim: -1 } }"), False),
    "reshape that moves items": (
        one("Reshape", "x", "y", "reshape_param { axis: 0 num_axes: 0 shape { dim: 1 } }"),
        False,
    ),
    "tile of items": (one("Tile", "x", "y", "tile_param { axis: 0 tiles: 2 }"), False),
    "reduction of all": (one("Reduction", "x", "y"), False),
    "argmax over items": (one("ArgMax", "x", "y", "argmax_param { axis: 0 }"), False),
    "arithmetic on a loss": (
        ip("fc", "x", "fc", CLASSES)
        + one("SoftmaxWithLoss", "fc label", "l", "loss_weight: 0")
        + one("Power", "l", "y"),
        False,
    ),
    "rows by choice": (one("Filter", "x label", "y"), False),
    "a blob without items": (
        'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 4 } } }'
        + one("Scale", "x p", "y", "scale_param { axis: 0 }"),
        False,
    ),
    "recurrent": (
        one("Reshape", "label", "cont", "reshape_param { shape { dim: 1 dim: 4 } }", name="c")
        + one("Reshape", "x", "seq", "reshape_param { shape { dim: 1 dim: 4 dim: -1 } }", name="s")
        + one("RNN", "seq cont", "y", "recurrent_param { num_output: 2 }"),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "expected"), MORE.values(), ids=MORE)
def test_which_nets_may_be_joined(layers: str, expected: bool) -> None:
    net, apart = (load_net(data(4) + CONV + layers, phase="TEST", seed=3) for _ in range(2))
    assert batching.joinable(net) == expected
    if "Filter" not in layers:  # whose outputs have no mean
        assert_same(outputs_of(net, 3, at_once=3), outputs_of(apart, 3, at_once=1))


def test_nets_in_training_and_nets_that_are_watched_run_as_they_are() -> None:
    net = net_of("drop", ["loss"], 2)
    with Watch(net):
        assert not batching.joinable(net)
    assert batching.joinable(net)
    assert not batching.joinable(net.train())
    assert batching.joinable(net.eval())
    hook = net.module("fc").register_forward_hook(lambda *_: None)
    assert not batching.joinable(net)
    hook.remove()
    assert batching.joinable(net)


def test_nets_that_the_caller_feeds_run_as_they_are() -> None:
    shapes = {"data": (2, 2, 5, 5), "label": (2,)}
    net = load_net(data(2) + BODIES["conv"] + ip("fc", "x", "fc", CLASSES) + HEADS["loss"], input_shapes=shapes)
    assert not batching.joinable(net.eval())


def test_other_peoples_layers_make_no_promise() -> None:
    class Mine(registry.layer.get("ReLU")):  # type: ignore[misc]
        pass

    class Fine(registry.layer.get("ReLU")):  # type: ignore[misc]
        per_item = True

    class Axis(registry.layer.get("InnerProduct")):  # type: ignore[misc]
        pass

    assert not Mine.per_item and Fine.per_item and not Layer.per_item
    spec = load_net(data(2) + ip("fc", "data", "fc", 3)).spec.layers[-1]
    assert not Axis(spec, [(2, 3)]).per_item


def test_every_type_that_promises_nothing_has_a_reason() -> None:
    own = {kind: cls for kind in registry.layer if (cls := registry.layer.get(kind)).__module__.startswith("forcereg.")}
    silent = {kind for kind, cls in own.items() if not (cls.per_item or cls.per_batch or issubclass(cls, ModuleLayer))}
    assert silent == {"Input", "Parameter", "LSTM", "LSTMUnit", "RNN", "Filter", "BatchReindex", "HDF5Output", "Python"}


@pytest.mark.parametrize("case", golden_cases("layers"))
def test_layers_keep_what_they_promise(case: Case) -> None:
    """On every recorded layer: two batches joined give what the two give."""
    net, inputs, _ = load_layer(case)
    net.eval()

    def around(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        other = [blob.flip(0) if blob.dim() else blob for blob in bottoms]
        apart = [tops_of(module, [blob.clone() for blob in batch]) for batch in (bottoms, other)]
        both = [torch.cat(pair) for pair in zip(bottoms, other, strict=True) if pair[0].dim()]
        if module.per_batch or batching._treats_apart(module, [tuple(blob.shape) for blob in bottoms]):
            found = tops_of(functools.partial(module.each, 2) if module.per_batch else module, both)
            expected = [joined(pair) for pair in zip(*apart, strict=True)]
            torch.testing.assert_close(list(found), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
        return apart[0] if len(spec.tops) != 1 else apart[0][0]

    net.around = around
    with torch.no_grad():
        net(inputs)


def tops_of(module: Callable[..., Any], bottoms: list[Tensor]) -> tuple[Tensor, ...]:
    tops = module(*bottoms)
    return (tops,) if isinstance(tops, Tensor) else tuple(tops)


# -- how many


@pytest.mark.parametrize(
    ("batch", "items", "room", "expected"),
    [
        pytest.param(4, 100, 1e3, 25, id="items"),
        pytest.param(4, 3, 1e3, 1, id="at-least-one"),
        pytest.param(4, 100, 2.5, 2, id="memory"),
        pytest.param(4, 100, 0.5, 1, id="no-memory"),
    ],
)
def test_how_many_fit(batch: int, items: int, room: float, expected: int) -> None:
    """`room`: how many batches' blobs it holds."""
    net = net_of("conv", ["loss"], batch)
    assert set(net.spec.outputs) == {"0loss"} and len(net.shapes) > 5
    size = 4 * sum(torch.zeros(shape).numel() for shape in net.shapes.values())
    assert batching.most(net, items, room * size) == expected


def test_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    net, recurrent = net_of("conv", ["loss"], 4), load_net(data(4) + CONV + MORE["recurrent"][0], phase="TEST")
    assert batching.batches_at_once(net) == 1
    monkeypatch.setattr(Net, "params", {"fc": [SimpleNamespace(device=torch.device("cuda"))]})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1 << 34))
    assert batching.batches_at_once(net) == batching.ITEMS // 4
    assert batching.batches_at_once(recurrent) == 1


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_graph_may_hold_it(at_once: int) -> None:
    net, tape, told = net_of("bn", ["ignored", "classes", "softmax"], 4), Tape(), list[str]()
    plain, taped = Tally(net), Tally(net)
    graphed = Graphed(taped.add, tape, told.append)
    for start in (0, 1):  # the second time in the same tensors
        for tally in (plain, taped):
            tally.clear()
        for _ in range(WARM_UP + 2):
            batches = [batching.gathered(net, None) for _ in range(at_once)]
            expected = plain.add(batches)
            with torch.no_grad():
                found = graphed(batches)
            for mine, its in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, its, rtol=0, atol=0)
        one, other = plain.sums(1), taped.sums(1)
        torch.testing.assert_close((other.loss, other.outputs), (one.loss, one.outputs), rtol=0, atol=0)
        assert tape.replayed == 2 + start * (WARM_UP + 2) and not told


# -- no autograd, and the solver


def test_tests_keep_nothing_for_a_backward(tmp_path: Path) -> None:
    solver = make(tmp_path)
    for net in solver.test_nets:
        net.around = lambda spec, module, bottoms: plain(module(*bottoms))
    solver.test_all()


def plain(tops: Any) -> Any:
    assert not torch.is_grad_enabled()
    assert all(top.grad_fn is None and not top.requires_grad for top in ((tops,) if isinstance(tops, Tensor) else tops))
    return tops


TESTS = 'test_iter: 5 test_iter: 3 test_interval: 4 test_compute_loss: true max_iter: 8 snapshot_prefix: "s"'


def make(root: Path, observer: Recorder | None = None) -> Solver:
    """A solver with two test nets over one set."""
    if not (root / "net.prototxt").exists():
        write_images(root, IMAGES)
    nets = 'train_net: "net.prototxt" test_net: "net.prototxt" test_net: "net.prototxt"'
    return Solver(write_solver(root, TESTS, net=nets), observers=[observer or Recorder()])


def force(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(scoring, "batches_at_once", lambda net: at_once)


def means_of(recorder: Recorder, since: int = 0) -> list[tuple[Any, ...]]:
    return [
        (e.net, e.iteration, *(o.value for o in e.outputs), e.loss) for e in recorder.of("test") if e.iteration >= since
    ]


@pytest.mark.parametrize("at_once", [2, 3, 7])
def test_a_solver_reports_the_same(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, together = Recorder(), Recorder()
    make(tmp_path, observer=apart).solve()
    force(monkeypatch, at_once)
    make(tmp_path, observer=together).solve()
    assert len(means_of(apart)) == 6
    for mine, its in zip(means_of(together), means_of(apart), strict=True):
        assert mine == pytest.approx(its, rel=1e-6)


def test_going_on_from_the_middle_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 2)
    whole, again = Recorder(), Recorder()
    solver = make(tmp_path, observer=whole)
    between: Callable[[int], bool] = solver._between_batches

    def asked(index: int) -> bool:
        if solver.iter == 4 and index == 2:
            solver.snapshot_requested = True
        return between(index)

    solver._between_batches = asked  # type: ignore[method-assign]
    solver.solve()
    assert [e.iteration for e in whole.of("snapshot")][:1] == [4]
    resumed = make(tmp_path, observer=again)
    resumed.restore(tmp_path / "s_iter_4.solverstate.h5")
    resumed.solve()
    assert means_of(again) == means_of(whole, 4)
