"""What is measured: the right layers at the right shapes, in turns. How long anything takes decides no test."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import forcereg.study.latency as latency
from forcereg.errors import ForceregError
from forcereg.lowrank.decompose import Prepared, Selection, prepare
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.net.load import load_net, net_shapes
from forcereg.net.module import Net
from forcereg.schema.text import net_from_message, parse_net
from forcereg.study.bench import Bench
from forcereg.study.latency import LEAST, LayerTimer, interleaved, net_latencies
from forcereg.system.capture import WARM_UP
from tests.solver.tape import Tape

NET = """
layer { name: "data" type: "Data" top: "data" top: "label"
  data_param { source: "absent_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" include { phase: TEST } param { name: "w" }
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" loss_weight: 1
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 group: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SHAPES = {"data": [4, 4, 9, 9], "label": [4]}
CPU = torch.device("cpu")


def prepared(text: str = NET, method: str = "pca", weights: Any = None, shapes: Any = SHAPES) -> Prepared:
    file = parse_net(text)
    if weights is None:
        net = load_net(file, input_shapes={"data": (4, 4, 9, 9), "label": (4,)}, seed=1)
        weights = {name: {i: b.detach().numpy() for i, b in enumerate(blobs)} for name, blobs in net.params.items()}
    return prepare(file, weights, net_shapes(file, shapes), Selection(method, fc=True))


def built(of: Prepared, name: str, choice: Choice, batch: int | None = None) -> tuple[Net, dict[str, torch.Tensor]]:
    """The net that is measured, and what it is fed."""
    (one,) = [one for one in of.candidates if one.name == name]
    run: Any = LayerTimer(of, Bench(CPU), batch).run(one, choice)
    return run.func, run.args[0]


def weights_of(net: Net) -> dict[str, list[int]]:
    return {name: list(blobs[0].shape) for name, blobs in net.params.items() if blobs}


@pytest.mark.parametrize("method", ["pca", "vh", "tucker2"])
@pytest.mark.parametrize(("name", "rank"), [("conv1", 3), ("conv2", 4)])
def test_chains_are_those_of_the_decomposed_net(method: str, name: str, rank: Rank) -> None:
    of = prepared(method=method)
    result = of.apply({name: rank})
    whole = load_net(result.net, input_shapes={"data": (4, 4, 9, 9), "label": (4,)})
    net, inputs = built(of, name, rank)
    expected = {part: shape for part, shape in weights_of(whole).items() if part.startswith(f"{name}_")}
    assert weights_of(net) == expected and len(expected) >= 2
    ((top, blob),) = net(inputs).items()
    assert (top, tuple(blob.shape)) == (name, whole.shapes[name])
    for part in expected:
        assert net.module(part).geometry == whole.module(part).geometry
        assert net.module(part).group == whole.module(part).group


def test_a_whole_layer_is_itself() -> None:
    net, inputs = built(prepared(), "conv2", Whole(""))
    assert weights_of(net) == {"conv2": [6, 4, 3, 3]}
    assert tuple(net(inputs)["conv2"].shape) == (4, 6, 4, 4)


def test_fully_connected_layers_too() -> None:
    net, inputs = built(prepared(), "ip", 2, batch=7)
    assert weights_of(net) == {"ip_lowrank": [2, 96], "ip_linear": [5, 2]}
    assert tuple(inputs["conv2"].shape) == (7, 6, 4, 4)


def test_what_is_decomposed_already_is_measured_as_it_is() -> None:
    first = prepared().apply({"conv2": 4})
    again = prepare(net_from_message(first.net), first.weights, prepared().shapes, Selection())
    chain, _ = built(again, "conv2", Whole(""))
    assert weights_of(chain) == {"conv2_lowrank": [4, 4, 3, 3], "conv2_linear": [6, 2, 1, 1]}
    shorter, _ = built(again, "conv2", 2)
    assert weights_of(shorter) == {"conv2_lowrank": [2, 4, 3, 3], "conv2_linear": [6, 1, 1, 1]}


@pytest.mark.parametrize(("batch", "size"), [(None, 4), (1, 1), (32, 32)])
def test_inputs_have_the_batch_and_the_nets_layout(batch: int | None, size: int) -> None:
    of = prepared()
    ((_, data),) = built(of, "conv1", 3, batch)[1].items()
    assert tuple(data.shape) == (size, 4, 9, 9) and data.is_contiguous()  # as a data layer hands it over
    ((_, blob),) = built(of, "conv2", 4, batch)[1].items()
    assert tuple(blob.shape) == (size, 8, 9, 9) and blob.is_contiguous(memory_format=torch.channels_last)
    assert (
        built(of, "conv2", 4)[0].module("conv2_lowrank").blob("weight").is_contiguous(memory_format=torch.channels_last)
    )


def test_weights_are_never_all_zero() -> None:
    net, _ = built(prepared(), "conv1", Whole(""))
    assert all(blob.count_nonzero() for blob in net.parameters())  # the bias's filler is zero


def test_choices_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    of = prepared()
    monkeypatch.setattr(
        latency, "interleaved", lambda runs, device: [[float(sum(map(len, run.func.params.values())))] for run in runs]
    )
    times = LayerTimer(of, Bench(CPU), None, told.append)(of.candidates[0], [Whole(""), 3, 4])
    assert times == [[2.0], [3.0], [3.0]]
    assert told == ["measuring conv1 as it is and at rank 3, 4"]


def test_unknown_shapes_are_told() -> None:
    with pytest.raises(ForceregError, match="blob shapes are unknown, so no layer can be measured"):
        LayerTimer(prepared(shapes=""), Bench(CPU))


def test_runs_take_turns() -> None:
    seen: list[str] = []
    times = interleaved([lambda: seen.append("a"), lambda: seen.append("b"), lambda: seen.append("c")], CPU, seconds=0)
    turns = [name for at, name in enumerate(seen) if at == 0 or seen[at - 1] != name]
    assert "".join(turns) == "abc" * (len(turns) // 3) and len(turns) >= 3 * LEAST
    assert [len(one) for one in times] == [LEAST] * 3
    assert all(ms > 0 for one in times for ms in one)


def test_nothing_is_kept_for_a_backward_pass() -> None:
    weight = torch.ones(3, requires_grad=True)
    kept: list[bool] = []
    interleaved([lambda: kept.append((2 * weight).requires_grad)], CPU, seconds=0)
    assert kept and not any(kept)


def fed(monkeypatch: pytest.MonkeyPatch, nets: list[Any], *args: Any, **options: Any) -> list[Any]:
    """The runs of `net_latencies` instead of their times."""
    found: list[Any] = []

    def stub(runs: list[Any], device: torch.device) -> list[list[float]]:
        found.extend(runs)
        return [[3.0, 1.0, 2.0]] * len(runs)

    monkeypatch.setattr(latency, "interleaved", stub)
    assert net_latencies(nets, Bench(CPU), *args, **options) == [2.0] * len(nets)
    return found


@pytest.mark.parametrize(("batch", "size"), [(None, 4), (3, 3)])
def test_whole_nets_before_and_after(monkeypatch: pytest.MonkeyPatch, batch: int | None, size: int) -> None:
    of = prepared()
    result = of.apply({"conv1": 3, "conv2": 4})
    nets = [(of.file, of.weights), (result.net, result.weights)]
    before, after = fed(monkeypatch, nets, batch, input_shapes=SHAPES)
    for run in (before, after):
        assert {name: tuple(blob.shape) for name, blob in run.args[0].items()} == {
            "data": (size, 4, 9, 9),
            "label": (size,),
        }
        assert run()["loss"].isfinite()
    assert torch.equal(before.func.params["ip"][0], torch.from_numpy(of.weights["ip"][0]))
    assert torch.equal(after.func.params["conv1_linear"][0], torch.from_numpy(result.weights["conv1_linear"][0]))


def test_a_nets_milliseconds() -> None:
    text = 'input: "x" input_shape { dim: 2 dim: 3 } layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    assert net_latencies([(text, None)], Bench(CPU), batch=1)[0] > 0


def test_a_net_whose_data_is_absent_says_so() -> None:
    with pytest.raises(ForceregError, match="absent_lmdb"):
        net_latencies([(NET, None)], Bench(CPU))


def test_on_a_gpu_graphs_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tape in its place; what can't be recorded is timed as it is."""
    tape = Tape()
    monkeypatch.setattr(latency, "recorder_for", lambda device: tape)
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    calls: list[str] = []

    def waits() -> None:
        calls.append("waits")
        torch.zeros(1).item()

    of = prepared()
    (one,) = [one for one in of.candidates if one.name == "conv1"]
    run = LayerTimer(of, Bench(CPU)).run(one, 3)
    expected = run()["conv1"].clone()
    with torch.inference_mode():
        recorded, plain = latency.at_one_launch([run, waits], CPU)
        assert plain is waits
        torch.testing.assert_close(recorded()["conv1"], expected)
    assert (tape.ran, tape.recorded, tape.replayed) == (2 * WARM_UP, 1, 1)
    times = interleaved([run, waits], CPU, 0)
    assert len(times) == 2 and tape.recorded == 2 and tape.replayed > LEAST


def test_a_layer_that_waits_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()
    monkeypatch.setattr(latency, "recorder_for", lambda device: tape)
    net = load_net(
        'layer { name: "x" type: "Input" top: "x" top: "s" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }'
        'layer { name: "f" type: "Filter" bottom: "x" bottom: "s" top: "y" }'
    )
    run = partial(net, {"x": torch.ones(2, 3), "s": torch.ones(2)})
    assert latency.at_one_launch([run], CPU) == [run]
    assert tape.ran == 0
