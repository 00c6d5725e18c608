"""Runtimes are given the right models and compute what torch does. How long anything takes decides no test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import forcereg
import forcereg.study.bench as bench
import forcereg.study.latency as latency
from forcereg.errors import ForceregError, UsageError
from forcereg.exports.runtimes import for_use, in_onnxruntime, in_openvino, model_of
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.net.load import load_net
from forcereg.study.bench import Bench, bench_of
from forcereg.study.latency import LayerTimer, net_run
from tests.study.test_latency import CPU, SHAPES, built, prepared

onnx = pytest.importorskip("onnx")
RUNTIMES = ["onnxruntime", "openvino"]
SMALL = """
input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { use_global_stats: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "twice" type: "Eltwise" bottom: "conv" bottom: "conv" top: "twice" }
layer { name: "prob" type: "Softmax" bottom: "twice" top: "prob" }
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The runs that would be measured; each takes a millisecond less than the one before it."""
    seen: list[list[Any]] = []

    def interleaved(runs: list[Any], device: torch.device, rounds: int = 1) -> list[list[float]]:
        seen.append(runs)
        return [[100.0 - number] * rounds for number, _ in enumerate(runs)]

    monkeypatch.setattr(latency, "interleaved", interleaved)
    return seen


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "choice"), [("conv1", Whole("")), ("conv2", 4), ("ip", 2)])
def test_layers_and_chains_are_torchs(runtime: str, name: str, choice: Choice) -> None:
    pytest.importorskip(runtime)
    net, inputs = built(prepared(method="pca" if name == "ip" else "vh"), name, choice)
    with torch.inference_mode():
        (expected,) = net(inputs).values()
    (found,) = Bench(CPU, runtime, 1).run(net, inputs)()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_chain_is_given_as_its_convolutions() -> None:
    net, _ = built(prepared(method="vh"), "conv2", 4, batch=3)
    graph = onnx.load_from_string(model_of(net)).graph
    assert [node.op_type for node in graph.node] == ["Conv", "Conv"]
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [3, 8, 9, 9]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_whole_nets_are_those_for_use(runtime: str) -> None:
    pytest.importorskip(runtime)
    of = prepared()
    fed = {name: tuple(shape) for name, shape in SHAPES.items()}
    run: Any = net_run(of.file, of.weights, fed, Bench(CPU, runtime, 1))
    (inputs,) = (one for one in run.args if isinstance(one, dict))
    assert {name: value.shape for name, value in inputs.items()} == {"data": (4, 4, 9, 9)}
    net = load_net(of.file, input_shapes=fed)
    for name, blobs in of.weights.items():
        for at, blob in blobs.items():
            net.params[name][at].data.copy_(torch.from_numpy(blob))
    with torch.inference_mode():
        data = {"data": torch.from_numpy(inputs["data"]), "label": torch.zeros(4)}
        logits = net(data, blobs=["ip"])["ip"]
    np.testing.assert_allclose(run()[0], logits.softmax(1).numpy(), rtol=1e-4, atol=1e-5)


def test_the_layer_timer_measures_what_the_runtime_runs(asked: list[list[Any]]) -> None:
    pytest.importorskip("onnxruntime")
    of = prepared()
    times = LayerTimer(of, Bench(CPU, "onnxruntime", 1))(of.candidates[0], [Whole(""), 3, 4])
    assert times == [[100.0], [99.0], [98.0]]
    assert [type(run.func.__self__).__name__ for run in asked[0]] == ["InferenceSession"] * 3


def test_threads_reach_the_runtime() -> None:
    net, inputs = built(prepared(), "conv1", 3)
    pytest.importorskip("onnxruntime")
    run: Any = in_onnxruntime(net, inputs, 3)
    assert run.func.__self__.get_session_options().intra_op_num_threads == 3
    pytest.importorskip("openvino")
    made: Any = in_openvino(net, inputs, 1)
    assert made.args[0].get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_torchs_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    with Bench(CPU, threads=before + 1).at_work():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert f"cpu, {before + 1} threads" in Bench(CPU, threads=before + 1).text


def test_the_runtime_is_told_with_its_version() -> None:
    runtime = pytest.importorskip("onnxruntime")
    assert bench_of("cpu", "onnxruntime", 1).text == f"cpu, 1 thread, onnxruntime {runtime.__version__}"


def test_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown runtime 'onnxruntim'.*did you mean"):
        bench_of("cpu", "onnxruntim")
    with pytest.raises(UsageError, match="unknown runtime 'x'; expected onnxruntime, openvino, torch"):
        bench_of("cpu", "x")
    monkeypatch.setattr(bench, "measuring_device", lambda asked: torch.device("cuda"))
    with pytest.raises(UsageError, match="--runtime onnxruntime runs on the CPU; use cpu in place of cuda"):
        bench_of("cuda", "onnxruntime")
    with pytest.raises(UsageError, match="--threads is for the CPU, and cuda is none"):
        bench_of("cuda", "torch", 2)
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ForceregError, match=r'needs openvino; install with pip install "forcereg\[openvino\]"'):
        bench_of("cpu", "openvino")


def test_a_layer_without_a_form_in_onnx_is_named() -> None:
    net = load_net('layer { name: "made" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }'
                   'layer { name: "loss" type: "EuclideanLoss" bottom: "x" bottom: "x" top: "l" }')  # fmt: skip
    with pytest.raises(ForceregError, match=r"'loss'.*type EuclideanLoss has no form in ONNX"):
        Bench(CPU, "onnxruntime", 1).run(net, {})


def test_time_measures_each_layer_of_the_net_for_use(asked: list[list[Any]]) -> None:
    pytest.importorskip("onnxruntime")
    told: list[int] = []
    timing = forcereg.time(
        SMALL, runtime="onnxruntime", threads=1, iterations=2, observer=lambda event: told.append(event.done)
    )
    assert [layer.name for layer in timing.layers] == ["conv", "relu", "twice", "prob"]  # bn is folded
    assert [layer.forward for layer in timing.layers] == [99.0, 98.0, 97.0, 96.0]
    assert (timing.runtime, timing.both, timing.backward, told) == ("onnxruntime", 100.0, 0.0, [0, 1, 2])
    whole, conv, *_ = asked[0]
    net = for_use(load_net(SMALL, seed=0))
    assert conv()[0].shape == net.shapes["conv"] and whole()[0].shape == net.shapes["prob"]
