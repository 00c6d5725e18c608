"""caffe.Net: what it lists, its passes by names, its blobs."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forcereg
import forcereg.pycaffe as caffe
from forcereg.pycaffe.state import ArgumentError
from tests.pycaffe.nets import DEPLOY, TRAINED, net_of

rng = np.random.default_rng(0)


def images(count: int = 2) -> np.ndarray:
    return rng.random((count, 3, 8, 8), np.float32)


# -- what it is made of


def test_listings(deploy: Any) -> None:
    split = "pool_pool_0_split"
    names = ["input", "conv", "relu", "pool", split, "ip", "aux", "prob"]
    assert list(deploy._layer_names) == names
    assert [layer.type for layer in deploy.layers][:5] == ["Input", "Convolution", "ReLU", "Pooling", "Split"]
    blobs = ["data", "conv", "pool", f"{split}_0", f"{split}_1", "ip", "aux", "prob"]
    assert list(deploy.blobs) == list(deploy._blob_names) == blobs
    assert list(deploy.params) == ["conv", "ip", "aux"]
    assert deploy.inputs == ["data"] and deploy.outputs == ["aux", "prob"]
    assert isinstance(deploy.blobs, OrderedDict) and list(deploy.layer_dict) == names
    assert deploy.top_names["relu"] == deploy.bottom_names["relu"] == ["conv"]
    assert deploy.bottom_names["ip"] == [f"{split}_0"] and deploy.top_names["input"] == ["data"]
    assert list(deploy._top_ids(4)) == [3, 4] and list(deploy._bottom_ids(5)) == [3]
    assert list(deploy._inputs) == [0] and list(deploy._outputs) == [6, 7]
    assert deploy.blobs["data"] is deploy.blobs["data"] and deploy.layers[0] is not deploy.layers[0]
    assert "conv" in deploy._layer_names and not hasattr(deploy._layer_names, "index")
    assert len(deploy.layers[1].blobs) == 2 and set(deploy.blob_loss_weights.values()) == {0}
    deploy.anything = 1
    assert deploy.anything == 1


def test_python_2_habits(deploy: Any) -> None:
    assert deploy.blobs.keys()[0] == "data" and deploy.params.has_key("conv")
    assert [name for name, _ in deploy.params.iteritems()] == list(deploy.params.iterkeys())
    assert deploy.blobs.items()[-1][0] == "prob" and deploy.blobs.values()[0] is deploy.blobs["data"]
    names = deploy.params.keys()
    assert names == ["conv", "ip", "aux"] and names & {"ip"} == {"ip"} == {"ip", "x"} & names
    assert names - {"ip"} == {"conv", "aux"} and {"ip", "x"} - names == {"x"} and not names.isdisjoint(["ip"])
    names.sort()
    assert names == sorted(deploy.params) and dict(deploy.params) == deploy.params


def test_python_2_habits_of_what_passes_return(deploy: Any) -> None:
    found = [deploy.forward(), deploy.forward_all(data=np.zeros((3, 3, 8, 8))), deploy.backward(diffs=["conv"])]
    assert [out.keys()[0] for out in found] == ["aux", "aux", "data"]
    for out in found:
        assert isinstance(out, dict) and [name for name, _ in out.iteritems()] == list(out)
        assert out.values()[0] is out[out.items()[0][0]] and repr(out).startswith("{'")
        # whoever reads it may have no forcereg
        assert type(pickle.loads(pickle.dumps(out))) is dict


def test_outputs_are_sorted_by_name(tmp_path: Path) -> None:
    net = net_of(DEPLOY.replace('"ip" top: "prob"', '"ip" top: "a"').replace('top: "aux"', 'top: "z"'), tmp_path)
    assert list(net.blobs)[-2:] == ["z", "a"] and net.outputs == ["a", "z"]
    assert [list(net.blobs)[index] for index in net._outputs] == ["a", "z"]


def test_a_loss_without_a_name(tmp_path: Path) -> None:
    net = net_of(TRAINED.replace('top: "loss"', ""), tmp_path)
    assert list(net.blobs)[-1] == "(automatic)" and net.outputs == []
    assert net.blob_loss_weights["(automatic)"] == 1


def test_several_inputs_in_one_file(tmp_path: Path) -> None:
    net = net_of(TRAINED, tmp_path)
    assert net.inputs == ["x", "label"] and net.outputs == ["loss"]
    assert net.blobs["loss"].data.shape == () and len(net.blobs["loss"].shape) == 0


@pytest.mark.parametrize(
    ("args", "named", "kind"),
    [
        pytest.param((), {}, ArgumentError, id="nothing"),
        pytest.param(("net.prototxt",), {}, ArgumentError, id="no-phase"),
        pytest.param(("net.prototxt", "TEST"), {}, ArgumentError, id="phase-text"),
        pytest.param(("net.prototxt", 1), {"weight": "w"}, ArgumentError, id="keyword"),
        pytest.param(("net.prototxt", 1), {"phase": 1}, ArgumentError, id="twice"),
        pytest.param((3, 1), {}, ArgumentError, id="no-path"),
        pytest.param(("none.prototxt", 1), {}, RuntimeError, id="no-file"),
        pytest.param(("net.prototxt", "none.caffemodel", 1), {}, RuntimeError, id="no-weights"),
        pytest.param(("net.prototxt", 1), {"weights": "none.caffemodel"}, RuntimeError, id="no-weights-by-keyword"),
        pytest.param(("bad.prototxt", 1), {}, RuntimeError, id="malformed"),
        pytest.param(("unknown.prototxt", 1), {}, RuntimeError, id="unknown-type"),
        pytest.param(("net.prototxt", 1), {"weights": "bad.prototxt"}, RuntimeError, id="no-model"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: Any, named: Any, kind: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(DEPLOY)
    Path("bad.prototxt").write_text("layer { name: ")
    Path("unknown.prototxt").write_text('layer { name: "a" type: "Nothing" top: "a" }')
    with pytest.raises(kind) as told:
        caffe.Net(*args, **named)
    assert issubclass(ArgumentError, TypeError) and "\n" not in str(told.value)
    for name in {"none.prototxt", "none.caffemodel"} & {*args, *named.values()}:
        assert str(told.value) == f"Could not open file {name}"


def test_forms_of_the_constructor(tmp_path: Path, deploy: Any) -> None:
    weights, file = tmp_path / "w.caffemodel", tmp_path / "net.prototxt"
    deploy.save(str(weights))
    expected = deploy.params["conv"][0].data
    for args, named in (
        ((str(file), str(weights), 1), {}),
        ((str(file), 1), {"weights": str(weights)}),
        ((), {"network_file": str(file), "phase": 1, "level": 0, "stages": None, "weights": str(weights)}),
        ((str(file).encode(), 1, 0, ["deploy"], weights), {}),
    ):
        net = caffe.Net(*args, **named)
        assert np.array_equal(net.params["conv"][0].data, expected)


def test_level_and_stages(tmp_path: Path) -> None:
    rule = 'include { stage: "extra" min_level: 2 } inner_product_param { num_output: 2'
    text = DEPLOY.replace("inner_product_param { num_output: 2", rule)
    assert "aux" not in net_of(text, tmp_path).blobs
    assert "aux" in net_of(text, tmp_path, level=2, stages=["extra"]).blobs


@pytest.mark.parametrize("call", [copy.deepcopy, pickle.dumps])
def test_no_copies(deploy: Any, call: Any) -> None:
    with pytest.raises(RuntimeError):
        call(deploy)


# -- passes


def test_forward_is_the_net_s_own(deploy: Any) -> None:
    x = images()
    found = deploy.forward(data=x)
    own = forcereg.load_net(DEPLOY)
    with torch.no_grad():
        for name, blobs in deploy.params.items():
            for mine, blob in zip(own.params[name], blobs, strict=True):
                mine.copy_(torch.from_numpy(blob.data))
    expected = own(data=torch.from_numpy(x))
    assert set(found) == {"aux", "prob"}
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name].detach(), rtol=1e-6, atol=1e-7)
        assert np.shares_memory(values, deploy.blobs[name].data)


def test_results_are_views_that_the_next_pass_overwrites(deploy: Any) -> None:
    first, conv = deploy.forward(data=images())["prob"], deploy.blobs["conv"].data
    kept, kept_conv = first.copy(), conv.copy()
    deploy.forward(data=images())
    assert not np.array_equal(first, kept) and not np.array_equal(conv, kept_conv)
    assert np.array_equal(first, deploy.blobs["prob"].data) and np.array_equal(conv, deploy.blobs["conv"].data)
    assert conv.flags.c_contiguous and not conv.flags.owndata and conv.dtype == np.float32


def test_going_on_from_an_edited_blob(deploy: Any) -> None:
    deploy.forward(data=images())
    deploy.blobs["pool"].data[...] = 0
    found = deploy.forward(start="ip", end="prob")
    assert set(found) == {"prob"}
    bias = deploy.params["ip"][1].data
    np.testing.assert_allclose(found["prob"][0], np.exp(bias) / np.exp(bias).sum(), rtol=1e-5)
    deploy.blobs["conv"].data[...] = 2
    assert deploy.forward(blobs=["conv"], start="pool", end="pool")["pool"].max() == 2


def test_weights_that_are_edited(deploy: Any) -> None:
    x = images()
    before = deploy.forward(data=x)["aux"].copy()
    held = deploy.params["conv"][0].data
    for scale in (2, 0.5):
        held *= scale
        deploy.params["conv"][1].data[...] *= scale
        np.testing.assert_allclose(
            deploy.forward(data=x)["aux"], before * (scale if scale > 1 else 1), rtol=1e-4, atol=1e-6
        )


def test_backward_adds_to_weights_and_overwrites_bottoms(deploy: Any) -> None:
    x = images()
    deploy.forward(data=x)
    seed = np.zeros((2, 5), np.float32)
    seed[:, 1] = 1
    deploy.blobs["prob"].diff[...] = seed
    found = deploy.backward()
    assert set(found) == {"data"} and np.shares_memory(found["data"], deploy.blobs["data"].diff)
    once, grad = found["data"].copy(), deploy.params["conv"][0].diff.copy()
    deploy.backward(**{"prob": seed, "aux": np.zeros((2, 2))})
    np.testing.assert_array_equal(deploy.blobs["data"].diff, once)
    np.testing.assert_allclose(deploy.params["conv"][0].diff, 2 * grad, rtol=1e-6)
    held = deploy.params["conv"][0].diff
    deploy.clear_param_diffs()
    assert not held.any() and grad.any()
    own = forcereg.load_net(DEPLOY)
    for name, blobs in deploy.params.items():
        for mine, blob in zip(own.params[name], blobs, strict=True):
            mine.data.copy_(torch.from_numpy(blob.data))
    tensor = torch.from_numpy(x).requires_grad_()
    expected = torch.autograd.grad(own(data=tensor)["prob"][:, 1].sum(), [tensor, own.params["conv"][0]])
    np.testing.assert_allclose(once, expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-6)


def test_backward_from_within(deploy: Any) -> None:
    """As deep dream does it."""
    deploy.forward(end="pool", data=images())
    top = deploy.blobs["pool"]
    top.diff[...] = top.data
    found = deploy.backward(start="pool", end="conv", diffs=["pool"])
    assert set(found) == {"data", "pool"} and found["data"].any()
    assert not deploy.params["ip"][0].diff.any()


def test_backward_sees_what_was_edited_behind_the_forward(deploy: Any) -> None:
    x = images()
    deploy.forward(data=x)
    deploy.blobs["aux"].diff[...] = 1
    deploy.params["aux"][0].data[...] = 0
    deploy.backward(start="aux", end="aux")
    assert not deploy.blobs["pool_pool_0_split_1"].diff.any()
    deploy.params["conv"][0].data[...] = 0
    deploy.blobs["conv"].diff[...] = 1
    deploy.blobs["data"].diff[...] = 5
    deploy.backward(start="conv", end="conv")
    assert not deploy.blobs["data"].diff.any()


def test_weights_changed_by_others_between_passes(trained: Any) -> None:
    trained.forward(x=np.ones((4, 6)), label=np.zeros(4))
    with torch.no_grad():
        for blobs in trained._chain.net.params.values():
            for blob in blobs:
                blob.mul_(0.5)
    trained._chain.weights_changed()
    trained.backward()
    assert trained.params["ip1"][0].diff.any()


def test_without_a_loss_nothing_runs_backward(tmp_path: Path) -> None:
    net = net_of(DEPLOY.replace("force_backward: true", ""), tmp_path)
    net.forward(data=images())
    net.backward(prob=np.ones((2, 5)), aux=np.ones((2, 2)))
    assert not net.blobs["data"].diff.any() and not net.params["conv"][0].diff.any()


def test_a_loss_has_its_weight_as_gradient(trained: Any) -> None:
    assert float(trained.blobs["loss"].diff) == 1 and trained.blob_loss_weights["loss"] == 1
    found = trained.forward(x=np.ones((4, 6)), label=np.zeros(4))
    assert float(found["loss"]) > 0
    assert trained._forward(0, len(trained.layers) - 1) == pytest.approx(float(found["loss"]))
    assert trained._forward(0, 1) == 0.0
    trained.backward()
    assert trained.params["ip1"][0].diff.any() and not trained.blobs["x"].diff.any()


def test_exceptions_of_passes(deploy: Any) -> None:
    x = images()
    for call, kind, text in (
        (lambda: deploy.forward(start="none"), ValueError, "list"),
        (lambda: deploy.forward(end="none"), ValueError, "list"),
        (lambda: deploy.forward(dat=x), Exception, "Input blob arguments do not match net inputs."),
        (lambda: deploy.forward(data=images(3)), Exception, "Input is not batch sized"),
        (lambda: deploy.backward(prob=np.ones((2, 5))), Exception, "Top diff arguments do not match net outputs."),
        (lambda: deploy.backward(prob=np.ones((3, 5)), aux=np.ones((2, 2))), Exception, "Diff is not batch sized"),
        (lambda: deploy.forward(data=x.tolist()), AttributeError, "shape"),
        (lambda: deploy.forward(data=x[:, :, :5]), ValueError, "broadcast"),
        (lambda: deploy.forward(blobs=["none"]), KeyError, "none"),
        (lambda: deploy._forward(0, 99), RuntimeError, "0 to 7"),
    ):
        with pytest.raises(kind, match=text):
            call()
    deploy.forward(data=x[:, :1])
    assert np.array_equal(deploy.blobs["data"].data[:, 2], x[:, 0])


def test_callbacks(deploy: Any) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("before_forward", "after_forward", "before_backward", "after_backward"):
        getattr(deploy, name)(lambda layer, name=name: seen.append((name, layer)))
    deploy._forward(1, 2)
    deploy._backward(2, 2)
    expected = [("before_forward", 1), ("after_forward", 1), ("before_forward", 2), ("after_forward", 2)]
    assert seen == [*expected, ("before_backward", 2), ("after_backward", 2)]
    deploy.before_forward(lambda layer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deploy.forward()


# -- batches of any number


@given(count=st.integers(1, 7), rows=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_forward_all(tmp_path_factory: pytest.TempPathFactory, count: int, rows: int) -> None:
    net = net_of(DEPLOY, tmp_path_factory.mktemp("net"))
    net.blobs["data"].reshape(rows, 3, 8, 8)
    x = images(count)
    found = net.forward_all(blobs=["conv"], data=x)
    assert {name: values.shape for name, values in found.items()} == {
        "prob": (count, 5),
        "aux": (count, 2),
        "conv": (count, 4, 6, 6),
    }
    net.blobs["data"].reshape(count, 3, 8, 8)
    whole = net.forward(data=x)
    np.testing.assert_allclose(found["prob"], whole["prob"], rtol=1e-5, atol=1e-7)
    assert found["prob"].dtype == np.float32


def test_batches(deploy: Any) -> None:
    pieces = list(deploy._batch({"data": images(5)}))
    assert [len(piece["data"]) for piece in pieces] == [2, 2, 2]
    assert pieces[0]["data"].dtype == np.float32 and pieces[-1]["data"].dtype == np.float64
    assert not pieces[-1]["data"][1].any()
    assert deploy.forward_all(data=images(0))["prob"].dtype == np.float64
    with pytest.raises(RuntimeError):
        deploy.forward_all()


def test_scalar_outputs_have_no_rows(trained: Any) -> None:
    with pytest.raises(TypeError):
        trained.forward_all(x=np.ones((4, 6)), label=np.zeros(4))


def test_forward_backward_all(deploy: Any) -> None:
    x, seeds = images(5), {"prob": rng.random((5, 5)), "aux": rng.random((5, 2))}
    outs, grads = deploy.forward_backward_all(blobs=["pool", "conv"], diffs=["ip"], data=x, **seeds)
    assert {name: len(values) for name, values in {**outs, **grads}.items()} == dict.fromkeys(
        ["prob", "aux", "pool", "conv", "data", "ip"], 5
    )
    deploy.forward(data=x[2:4])
    deploy.backward(**{name: seed[2:4] for name, seed in seeds.items()})
    np.testing.assert_allclose(grads["data"][2:4], deploy.blobs["data"].diff, rtol=1e-5, atol=1e-7)
    outs, grads = deploy.forward_backward_all(data=x)
    assert len(outs["prob"]) == len(grads["data"]) == 5
