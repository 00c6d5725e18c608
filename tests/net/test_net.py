"""Nets as torch modules: loading, phases, calling, gradients, losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net, net_file
from forcereg.net.module import Net
from forcereg.schema import TEST, NetParameter
from forcereg.schema.text import parse_net
from tests.small_nets import NET, batch, fails, inputs, ip

# -- loading


def test_path_text_and_message_give_the_same_net(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    message = parse_net(NET).message
    nets = [load_net(model, seed=1) for model in (path, str(path), NET, message, net_file(path))]
    for net in nets:
        torch.testing.assert_close(net(batch()), nets[0](batch()), rtol=0, atol=0)
    assert [net.spec.filename for net in nets] == [str(path), str(path), "<text>", "<NetParameter>", str(path)]
    assert nets[0].spec.text == NET


def test_the_message_is_not_changed() -> None:
    message = parse_net(NET).message
    before = NetParameter.FromString(message.SerializeToString())
    load_net(message)
    assert message == before


def test_a_missing_file(tmp_path: Path) -> None:
    assert "nowhere.prototxt" in fails(tmp_path / "nowhere.prototxt")


@pytest.mark.parametrize("model", [None, 3, ["a"]], ids=str)
def test_a_model_of_another_kind(model: Any) -> None:
    assert "expected a path, prototxt text or NetParameter" in fails(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NET.replace('"Dropout"', '"Dropuot"').replace("TRAIN", "TEST"), "unknown layer type 'Dropuot'; did you mean"),
        (NET.replace('"ReLU"', '"Zzzzzz"'), "unknown layer type 'Zzzzzz'; `forcereg layers` lists all"),
        (NET.replace('type: "ReLU"', ""), "type is missing; set for example type:"),
        (NET.replace("num_output: 3", ""), "<text>:5: layer 'conv': num_output is missing"),
        (NET.replace('bottom: "ip" ', 'bottom: "pi" ', 1), "unknown bottom blob 'pi'"),
        (NET.replace("{ lr_mult: 2 }", "{} param {}"), "<text>:5: layer 'conv': has 3 param entries for 2 blobs"),
    ],
    ids=["type", "type_far", "no_type", "num_output", "bottom", "params"],
)
def test_errors_name_file_line_and_layer(text: str, message: str) -> None:
    found = fails(text)
    assert message in found and found.startswith("<text>:")


def test_names_of_layers_with_weights_differ() -> None:
    text = "\n".join([inputs(x=(2, 3)), ip("ip", "x", "a", 3), ip("ip", "a", "b", 3)])
    assert fails(text).startswith("<text>:3: layer 'ip': ") and "<text>:2: layer 'ip'" in fails(text)


def test_layers_without_weights_may_share_a_name() -> None:
    relus = [
        f'layer {{ name: "r" type: "{kind}" bottom: "{b}" top: "{t}" }}'
        for kind, b, t in (("ReLU", "x", "a"), ("Sigmoid", "a", "b"))
    ]
    net = load_net("\n".join([inputs(x=(2, 3)), *relus]))
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    torch.testing.assert_close(net(x=x)["b"], torch.sigmoid(x.clamp(min=0)))


def test_phases_filter_layers() -> None:
    train, test = load_net(NET, phase="TRAIN"), load_net(NET)
    assert (train.training, test.training) == (True, False)
    assert "drop" in train.params and "acc" not in train.params
    assert "acc" in test.params and "drop" not in test.params
    assert (train.spec.outputs, test.spec.outputs) == (("drop", "loss"), ("acc", "loss"))


def test_level_and_stages() -> None:
    relu = 'layer {{ name: "{0}" type: "ReLU" bottom: "x" top: "{0}" include {{ {1} }} }}'
    text = "\n".join([inputs(x=(2, 3)), relu.format("a", "min_level: 1"), relu.format("b", 'stage: "s"')])
    found = {
        (level, stages): load_net(text, level=level, stages=stages).spec.outputs
        for level in (0, 1)
        for stages in ((), ("s",))
    }
    assert found == {(0, ()): ("x",), (0, ("s",)): ("b",), (1, ()): ("a",), (1, ("s",)): ("a", "b")}


def test_the_asked_phase_beats_the_files_state() -> None:
    assert load_net("state { phase: TRAIN }" + NET, phase="TEST").spec.phase == TEST


def test_a_layers_own_phase_pins_it() -> None:
    drop = 'layer { name: "d" type: "Dropout" bottom: "x" top: "d" phase: %s }'
    x = torch.ones(100, 100)
    for own, drops in (("TRAIN", True), ("TEST", False)):
        net = load_net("\n".join([inputs(x=(2, 3)), drop % own]), phase="TEST" if drops else "TRAIN")
        for mode in (net, net.train(), net.eval()):
            assert bool((mode(x=x)["d"] == 0).any()) == drops


# -- calling


def test_call_forms() -> None:
    net = load_net(NET, seed=0)
    expected = net(**batch())
    for out in (net(batch()), net({"data": batch()["data"]}, label=batch()["label"])):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert list(expected) == ["acc", "loss"]


def test_intermediate_blobs() -> None:
    net = load_net(NET)
    out = net(batch(), blobs=["conv", "data", "ip_ip_0_split_1"])
    assert list(out) == ["acc", "loss", "conv", "data", "ip_ip_0_split_1"]
    assert out["conv"].shape == (4, 3, 4, 4) and out["conv"].min() == 0  # in place: after the ReLU
    assert set(net(batch(), blobs="ip")) == {"acc", "loss", "ip"}


def test_unknown_blob_asked_for() -> None:
    with pytest.raises(ForceregError, match=r"net has no blob 'cnov'; did you mean .conv."):
        load_net(NET)(batch(), blobs=["cnov"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "net 'small' needs input blobs label; give one tensor each or a data layer"),
        ({"dat": torch.ones(1)}, "net 'small' has no input blob 'dat'; did you mean \"data\"?"),
        ({"zzz": torch.ones(1)}, "net 'small' has no input blob 'zzz'; inputs are data, label"),
        ({"data": torch.ones(2, 6, 6)}, "input 'data' has shape [2, 6, 6]; expected 4 axes like [4, 2, 6, 6]"),
        ({"data": object()}, "input 'data' is a object; expected a tensor"),
        (
            {"data": torch.ones(4, 3, 6, 6)},
            "<text>:5: layer 'conv': its weight [3, 2, 3, 3] doesn't fit bottom [4, 3, 6, 6], which needs [3, 3, 3, 3]"
            "; give it what the net was made for; 'data' is [4, 3, 6, 6], the net was made for [4, 2, 6, 6]",
        ),
        (
            {"data": torch.ones(4, 2, 9, 9)},
            "<text>:10: layer 'ip': its weight [5, 48] doesn't fit bottom [4, 3, 7, 7], which needs [5, 147]; give all "
            "images one size (crop_size, new_height and new_width), or pool over all positions in front of it "
            "(global_pooling); 'data' is [4, 2, 9, 9], the net was made for [4, 2, 6, 6]",
        ),
        ({"data": torch.ones(4, 2, 2, 9)}, "<text>:5: layer 'conv': kernel extent 3 is larger than its padded input 2"),
        ({"data": torch.ones(4, 2, 6, 6).double()}, "<text>:5: layer 'conv': cannot run on bottoms [4, 2, 6, 6]: "),
        ({"label": torch.full((4,), 5.0)}, "layer 'acc': cannot run on bottoms [4, 5], [4]: "),
    ],
    ids=["missing", "wrong", "unknown", "axes", "type", "channels", "size", "small", "dtype", "label"],
)
def test_bad_inputs(change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**batch(), **change}.items() if value is not None}
    with pytest.raises(ForceregError) as info:
        load_net(NET)(given)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_another_batch_size() -> None:
    net = load_net(NET, seed=0)
    whole = net(batch(4), blobs=["ip"])["ip"]
    torch.testing.assert_close(net({k: v[:3] for k, v in batch(4).items()}, blobs=["ip"])["ip"], whole[:3])


def test_inputs_are_not_changed() -> None:
    text = inputs(x=(2, 3)) + '\nlayer { name: "r" type: "ReLU" bottom: "x" top: "x" }'
    x = torch.tensor([[-1.0, 2.0, -3.0]])
    assert load_net(text)(x=x)["x"].tolist() == [[0, 2, 0]]
    assert x.tolist() == [[-1, 2, -3]]


def test_numpy_inputs() -> None:
    out = load_net(NET)(data=batch()["data"].numpy(), label=np.arange(4))
    assert out["loss"].isfinite()


# -- gradients


def test_an_input_that_requires_grad_gets_one_and_labels_get_none() -> None:
    net = load_net(NET, phase="TRAIN")
    given = {name: value.requires_grad_() for name, value in batch().items()}
    net.forward_loss(given)[0].backward()
    assert given["data"].grad.abs().sum() > 0 and given["label"].grad is None
    assert all(p.grad is not None for p in net.parameters())


def test_propagate_down_false_cuts_one_bottom() -> None:
    more = "propagate_down: false propagate_down: true"
    eltwise = f'layer {{ name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "e" {more} }}'
    net = load_net("\n".join([inputs(a=(2, 3), b=(2, 3)), eltwise, ip("ip", "e", "out", 1)]))
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    net(a=a, b=b)["out"].sum().backward()
    assert a.grad is None and b.grad is not None


def test_propagate_down_false_leaves_the_layers_own_weights_learning() -> None:
    layers = [ip("one", "x", "a", 3), ip("two", "a", "b", 3, "propagate_down: false")]
    net = load_net("\n".join([inputs(x=(2, 3)), *layers]))
    x = torch.ones(2, 3, requires_grad=True)
    net(x=x)["b"].sum().backward()
    assert x.grad is None and net.params["one"][0].grad is None
    assert all(blob.grad is not None for blob in net.params["two"])


def test_propagate_down_true_does_not_reach_labels() -> None:
    text = NET.replace('top: "loss"', 'top: "loss" propagate_down: true propagate_down: true')
    given = {name: value.requires_grad_() for name, value in batch().items()}
    load_net(text).forward_loss(given)[0].backward()
    assert given["label"].grad is None and given["data"].grad is not None


def test_lr_mult_0_needs_no_gradient() -> None:
    net = load_net(NET.replace("lr_mult: 2", "lr_mult: 0"))
    weight, bias = net.params["conv"]
    assert (weight.requires_grad, bias.requires_grad) == (True, False)
    net.forward_loss(batch())[0].backward()
    assert weight.grad is not None and bias.grad is None


def test_force_backward_overrides_propagate_down_and_lr_mult_0() -> None:
    """Caffe's rule: all bottoms that a layer doesn't refuse get a gradient, and all blobs."""
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    layers = [ip("ip", "x", "y", 2, f"propagate_down: false {frozen}"), loss_of("y", "label", "propagate_down: false")]
    text = "\n".join([inputs(x=(2, 3), label=(2,)), *layers])
    for forced in (False, True):
        net = load_net(f"force_backward: {str(forced).lower()}\n{text}", phase="TRAIN")
        x, label = torch.ones(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
        total = net.forward_loss({"x": x, "label": label})[0]
        assert total.requires_grad == forced
        if forced:
            total.backward()
        found = [tensor.grad is not None for tensor in (x, label, *net.params["ip"])]
        assert found == [forced, False, forced, forced]


def test_an_input_gets_its_gradient_through_a_frozen_net() -> None:
    text = "\n".join([inputs(x=(2, 3)), ip("ip", "x", "y", 2, "param { lr_mult: 0 } param { lr_mult: 0 }")])
    x = torch.ones(2, 3, requires_grad=True)
    net = load_net(text)
    net(x=x)["y"].sum().backward()
    torch.testing.assert_close(x.grad, net.params["ip"][0].sum(0).expand(2, 3))


def loss_of(scores: str, labels: str, more: str) -> str:
    blobs = f'bottom: "{scores}" bottom: "{labels}" {more} propagate_down: false'
    return f'layer {{ name: "loss" type: "SoftmaxWithLoss" {blobs} }}'


# -- losses


LOSSES = inputs(a=(2, 3), b=(2, 3))


def loss(name: str, tops: str = "", more: str = "", kind: str = "EuclideanLoss") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "a" bottom: "b" {tops} {more} }}'


def total(net: Net, **given: Tensor) -> float:
    return net.forward_loss(given)[0].item()


def test_total_loss_is_the_weighted_sum() -> None:
    text = "\n".join(
        [
            LOSSES,
            loss("l1", 'top: "l1"', "loss_weight: 3"),
            loss("l2", 'top: "l2"'),
            loss("l3", 'top: "l3"', "loss_weight: 0"),
            loss("sum", 'top: "sum"', "loss_weight: 0.5", "Eltwise"),
        ]
    )
    net = load_net(text)
    # each loss is 6 / 4; the sum blob holds six ones, and every element is weighted
    given = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}
    assert total(net, **given) == pytest.approx(4 * 1.5 + 0.5 * 6)
    assert net.loss_weights == {"l1": 3, "l2": 1, "sum": 0.5}
    assert net.total_loss(net(given)).item() == total(net, **given)


def test_anonymous_loss_counts_but_is_no_output() -> None:
    net = load_net("\n".join([LOSSES, loss("l")]))
    a = torch.ones(2, 3, requires_grad=True)
    value, out = net.forward_loss({"a": a, "b": torch.zeros(2, 3)})
    assert value.item() == 1.5 and out == {}
    value.backward()
    torch.testing.assert_close(a.grad, torch.full((2, 3), 0.5))
    with pytest.raises(ForceregError, match="total_loss needs blob '\\(l\\)'"):
        net.total_loss(out)


def test_loss_with_two_tops() -> None:
    text = inputs(a=(2, 3), b=(2,)) + loss("l", 'top: "l" top: "p"', kind="SoftmaxWithLoss")
    net = load_net(text)
    value, out = net.forward_loss({"a": torch.zeros(2, 3), "b": torch.zeros(2)})
    assert list(out) == ["l", "p"] and out["p"].shape == (2, 3)
    assert value.item() == out["l"].item() == pytest.approx(np.log(3))


def test_net_without_a_loss_has_loss_zero() -> None:
    assert total(load_net(inputs(x=(2, 3))), x=torch.ones(2, 3)) == 0


@pytest.mark.parametrize("weight", ["", "loss_weight: 1"], ids=["implicit", "explicit"])
def test_a_loss_that_another_layer_reads_counts_once(weight: str) -> None:
    """Caffe drops its gradient (implicit weight) or counts it twice (explicit)."""
    reader = 'layer { name: "r" type: "Sigmoid" bottom: "l" top: "r" }'
    with pytest.warns(UserWarning, match="layer 'l': loss blob 'l' is read by another layer too"):
        net = load_net("\n".join([LOSSES, loss("l", 'top: "l"', weight), reader]))
    a = torch.ones(2, 3, requires_grad=True)
    value, _ = net.forward_loss({"a": a, "b": torch.zeros(2, 3)})
    value.backward()
    assert value.item() == 1.5
    torch.testing.assert_close(a.grad, torch.full((2, 3), 0.5))


def test_weighted_blob_that_is_read_shows_as_split_0() -> None:
    text = "\n".join([inputs(x=(2, 3)), ip("ip", "x", "y", 2, "loss_weight: 2"), ip("ip2", "y", "z", 2)])
    value, out = load_net(text).forward_loss({"x": torch.ones(2, 3)})
    assert list(out) == ["y_ip_0_split_0", "z"]
    assert value.item() == pytest.approx(2 * out["y_ip_0_split_0"].sum().item())


def test_outputs_are_in_alphabetical_order() -> None:
    text = "\n".join([inputs(x=(2, 3)), ip("1", "x", "z", 2), ip("2", "x", "b", 2), ip("3", "x", "m", 2)])
    assert list(load_net(text)(x=torch.ones(2, 3))) == ["b", "m", "z"]


def test_repr_names_inputs_and_outputs() -> None:
    assert "name='small', inputs=['data', 'label'], outputs=['acc', 'loss']" in repr(load_net(NET))
