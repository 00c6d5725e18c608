"""A net's parameters: order, keys, copies, sharing, weights from files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.snapshot import write_model
from tests.golden_cases import Case, golden_cases
from tests.small_nets import NET, batch, fails, inputs, ip, module_copies

# -- parameters


def test_params_are_in_caffes_order_and_cover_every_layer() -> None:
    net = load_net(NET)
    assert list(net.params) == [spec.name for spec in net.spec.layers]
    shapes = {name: [tuple(blob.shape) for blob in blobs] for name, blobs in net.params.items() if blobs}
    assert shapes == {"conv": [(3, 2, 3, 3), (3,)], "bn": [(3,), (3,), (1,)], "ip": [(5, 48), (5,)]}
    assert net.params["conv"][0] is net.params["conv"][0]


def test_learnable_lists_multipliers_in_order() -> None:
    text = NET.replace("{ lr_mult: 1 }", "{ lr_mult: 0.5 decay_mult: 0 force_mult: 2 }")
    found = [(p.layer, p.index, p.lr_mult, p.decay_mult, p.force_mult) for p in load_net(text).learnable]
    assert found == [
        ("conv", 0, 0.5, 0, 2),
        ("conv", 1, 2, 1, 0),
        ("bn", 0, 0, 1, 0),
        ("bn", 1, 0, 1, 0),
        ("bn", 2, 0, 1, 0),
        ("ip", 0, 1, 1, 0),
        ("ip", 1, 1, 1, 0),
    ]


def test_state_dict_keys_are_stable() -> None:
    keys = ["conv.weight", "conv.bias", "bn.mean", "bn.variance", "bn.factor", "ip.weight", "ip.bias"]
    for phase in ("TRAIN", "TEST"):
        assert list(load_net(NET, phase=phase).state_dict()) == [f"layers.{key}" for key in keys]


@pytest.mark.parametrize(
    "name", ["a.b", "a/b", "train", "type", "half", "forward", "layers", "", "_modules", "é 1", "."]
)
def test_any_layer_name_works(name: str) -> None:
    net = load_net("\n".join([inputs(x=(2, 3)), ip(name, "x", "y", 2)]))
    assert [tuple(blob.shape) for blob in net.params[name]] == [(2, 3), (2,)]
    again = load_net("\n".join([inputs(x=(2, 3)), ip(name, "x", "y", 2)]))
    again.load_state_dict(net.state_dict())
    x = torch.ones(2, 3)
    assert torch.equal(net(x=x)["y"], again(x=x)["y"])
    assert torch.equal(copy.deepcopy(net).half().float().train()(x=x)["y"].round(), again(x=x)["y"].round())


def test_names_that_differ_in_reserved_characters_only() -> None:
    names = ["a.b", "a_b", "a.b_", "a/b"]
    layers = [ip(name, "x" if i == 0 else f"y{i - 1}", f"y{i}", 3) for i, name in enumerate(names)]
    net = load_net("\n".join([inputs(x=(2, 3)), *layers]))
    assert len(net.state_dict()) == 8 and len({id(net.params[name][0]) for name in names}) == 4


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_are_equal_and_independent(how: str) -> None:
    net = load_net(NET, seed=4)
    expected = net(batch())
    again = module_copies(net)[how]
    torch.testing.assert_close(again(batch()), expected, rtol=0, atol=0)
    assert again.spec == net.spec and again.shapes == net.shapes and list(again.params) == list(net.params)
    with torch.no_grad():
        for blobs in again.params.values():
            for blob in blobs:
                blob.zero_()
    torch.testing.assert_close(net(batch()), expected, rtol=0, atol=0)


def test_moving_to_float64() -> None:
    net = load_net(NET, seed=4)
    expected = net(batch(), blobs=["ip"])["ip"]
    net.to(torch.float64)
    assert {blob.dtype for blobs in net.params.values() for blob in blobs} == {torch.float64}
    given = {name: value.double() for name, value in batch().items()}
    out = net(given, blobs=["ip"])["ip"]
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), expected)


def test_train_and_eval_switch_batch_norm_and_dropout() -> None:
    net = load_net(NET, phase="TRAIN", seed=0)
    torch.manual_seed(0)
    first = net(batch())
    assert net.params["bn"][2].item() == 1 and (first["drop"] == 0).float().mean() > 0.5
    net.eval()
    again = net(batch())
    assert net.params["bn"][2].item() == 1
    torch.testing.assert_close(net(batch()), again, rtol=0, atol=0)
    net.train()
    net(batch())
    assert net.params["bn"][2].item() == pytest.approx(1.999)


# -- shared parameters


def shared(first: str = "", second: str = "", sizes: tuple[int, int] = (3, 3), transpose: str = "") -> str:
    param = 'param {{ name: "w" {} }} param {{ name: "{}" }}'
    return "\n".join(
        [
            inputs(x=(2, 3), z=(2, 3)),
            ip("one", "x", "a", sizes[0], param.format(first, "b1")),
            ip("two", "z", "b", sizes[1], param.format(second, "b2"), transpose),
        ]
    )


def test_shared_weights_are_one_tensor_whose_gradients_add() -> None:
    net = load_net(shared(), seed=0)
    assert net.params["one"][0] is net.params["two"][0]
    assert net.params["one"][1] is not net.params["two"][1]
    assert net.shared == {"two/0": "one/0"}
    assert [(p.layer, p.index) for p in net.learnable] == [("one", 0), ("one", 1), ("two", 1)]
    x, z = torch.ones(2, 3), torch.full((2, 3), 10.0)
    out = net(x=x, z=z)
    (out["a"].sum() + out["b"].sum()).backward()
    torch.testing.assert_close(net.params["one"][0].grad, torch.full((3, 3), 22.0))
    assert len(list(net.parameters())) == 3


def test_strict_sharing_wants_equal_shapes() -> None:
    text = fails(shared(sizes=(3, 2)))
    assert text.startswith("<text>:4: layer 'two': blob 0 [2, 3] shares param 'w' with layer 'one' [3, 3]")
    assert "same shape" in text


def test_permissive_sharing_wants_equal_counts() -> None:
    """The borrower's share_mode decides; it reads the owner's numbers in its own shape."""
    text = shared(second="share_mode: PERMISSIVE", sizes=(6, 2)).replace("dim: 2 dim: 3", "dim: 2 dim: 2", 1)
    # the owner is 6x2, the borrower would be 2x3
    assert "same count" in fails(text)
    text = text.replace("num_output: 2 ", "num_output: 4 ")
    net = load_net(text, seed=0)
    owner = net.params["one"][0]
    assert owner.shape == (6, 2) and net.shared == {"two/0": "one/0"}
    z = torch.eye(3)[:2]
    out = net(x=torch.ones(2, 2), z=z)["b"]
    torch.testing.assert_close(out, z @ owner.reshape(4, 3).t())
    out.sum().backward()
    assert owner.grad.reshape(4, 3).sum(0).tolist() == [4, 4, 0]
    borrowed = net.params["two"][0]
    assert torch.equal(borrowed, owner.reshape(4, 3)) and torch.equal(borrowed.grad, owner.grad.reshape(4, 3))
    assert "same shape" in fails(text.replace("share_mode: PERMISSIVE", ""))
    assert "same shape" in fails(shared(first="share_mode: PERMISSIVE", sizes=(3, 2)))


def test_weights_of_a_permissive_share_are_read_and_handed_on_in_the_borrowers_shape(tmp_path: Path) -> None:
    """Caffe's binary files hold a shared blob under every layer that uses it, in that layer's shape."""
    text = shared(second="share_mode: PERMISSIVE", sizes=(6, 4)).replace("dim: 2 dim: 3", "dim: 2 dim: 2", 1)
    net, values = load_net(text, seed=0), np.arange(12, dtype=np.float32)
    bias = {name: blobs[1].detach().numpy() for name, blobs in net.params.items() if blobs}
    weights = {"one": values.reshape(6, 2), "two": values.reshape(4, 3)}
    path = tmp_path / "shared.caffemodel.h5"
    write_model(path, {name: {0: weight, 1: bias[name]} for name, weight in weights.items()})
    found = load_net(text, path).params
    assert all(torch.equal(found[name][0], torch.from_numpy(weight)) for name, weight in weights.items())
    other = load_net(text, seed=1)
    assert other.share_params(net) == [] and other.params["one"][0] is net.params["one"][0]
    with torch.no_grad():
        net.params["one"][0].fill_(2)
    assert torch.equal(other.params["two"][0], torch.full((4, 3), 2.0))


@pytest.mark.parametrize("field", ["lr_mult", "decay_mult", "force_mult"])
def test_multipliers_of_shared_weights(field: str) -> None:
    def value(first: str, second: str) -> float:
        return getattr(load_net(shared(first, second)).learnable[0], field)

    default = 0 if field == "force_mult" else 1
    assert value("", "") == default
    assert value(f"{field}: 3", "") == 3
    assert value("", f"{field}: 3") == 3
    assert value(f"{field}: 3", f"{field}: 3") == 3
    text = fails(shared(f"{field}: 3", f"{field}: 4"))
    assert text.startswith(f"<text>:4: layer 'two': shared param 'w' has {field} 4, layer 'one' gives 3")


def test_the_view_of_shared_weights() -> None:
    assert [one.force_view for one in load_net(shared("force_view: BOTH", "")).learnable][:2] == ["BOTH", "FILTERS"]
    assert load_net(shared("", "force_view: CHANNELS")).learnable[0].force_view == "CHANNELS"
    text = fails(shared("force_view: BOTH", "force_view: CHANNELS"))
    assert "shared param 'w' has force_view CHANNELS, layer 'one' gives BOTH; use one value" in text


def test_groups_are_those_of_the_weight() -> None:
    grouped = NET.replace("num_output: 3", "num_output: 4 group: 2")
    assert [one.groups for one in load_net(grouped).learnable] == [2] + [1] * 6


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("param { force_view: VERTICAL }", "param 0: force_view VERTICAL needs a convolution's weight"),
        ("param {} param { force_view: CHANNELS }", r"param 1: force_view CHANNELS needs a weight of two axes or more"),
    ],
)
def test_a_view_that_a_blob_has_not(param: str, expected: str) -> None:
    text = fails(inputs(x=(2, 3)) + "\n" + ip("one", "x", "y", 2, param))
    assert text.startswith("<text>:2: layer 'one'") and expected in text and "use another view" in text


def test_a_borrower_can_freeze_the_owner() -> None:
    net = load_net(shared("", "lr_mult: 0"))
    assert not net.params["one"][0].requires_grad


def test_the_first_of_several_owns() -> None:
    text = shared() + "\n" + ip("three", "a", "c", 3, 'param { name: "w" }')
    assert load_net(text).shared == {"two/0": "one/0", "three/0": "one/0"}


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save", "double", "state_dict"])
def test_sharing_survives(how: str) -> None:
    bn = 'layer {{ name: "{0}" type: "BatchNorm" bottom: "{1}" top: "{0}" param {{ name: "m" lr_mult: 0 }} }}'
    text = "\n".join([shared(), bn.format("bn1", "a"), bn.format("bn2", "b")])
    net = load_net(text, seed=0)
    if how == "double":
        net = net.double()
    elif how == "state_dict":
        state, net = net.state_dict(), load_net(text, seed=1)
        net.load_state_dict(state)
    else:
        net = module_copies(net)[how]
    assert net.params["one"][0] is net.params["two"][0]
    assert net.params["bn1"][0] is net.params["bn2"][0]
    assert net.params["bn1"][1] is not net.params["bn2"][1]
    assert net.shared == {"two/0": "one/0", "bn2/0": "bn1/0"}


def test_share_params_takes_the_trained_layers_by_name() -> None:
    train, test = load_net(NET, phase="TRAIN", seed=0), load_net(NET, seed=1)
    assert test.share_params(train) == ["conv_relu_0_split", "drop"]
    for name, blobs in test.params.items():
        assert all(mine is theirs for mine, theirs in zip(blobs, train.params.get(name, ()), strict=True)), name
    other = load_net(NET.replace("num_output: 5", "num_output: 6"))
    with pytest.raises(ForceregError, match=r"layer 'ip': has blobs .*the training net's are"):
        other.share_params(train)


# -- weights


@pytest.fixture(scope="module")
def recorded_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A recorded snapshot case and the HDF5 weights that Caffe wrote for it."""
    case = next(p.values[0] for p in golden_cases("snapshots") if "layout_caffemodel" in p.values[0].attrs)
    path = tmp_path_factory.mktemp("weights") / "snap.caffemodel.h5"
    path.write_bytes(case.file(f"snap_iter_{case.attrs['iter_snapshot']}.caffemodel.h5"))
    return case, path


def test_weights_of_caffe_load(recorded_weights: tuple[Case, Path]) -> None:
    case, path = recorded_weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recorded BatchNorm nets
        net = load_net(case.attrs["net"], weights=path, phase="TRAIN")
    recorded = case.tree(f"iter_{case.attrs['iter_snapshot']:04d}/params")
    assert recorded
    for name, values in recorded.items():
        layer, index = name.rsplit("/", 1)
        np.testing.assert_allclose(net.params[layer][int(index)].detach().numpy(), values, atol=1e-6)


def test_later_weights_override(tmp_path: Path) -> None:
    text = "\n".join([inputs(x=(2, 3)), ip("ip", "x", "y", 2), ip("ip2", "y", "z", 2)])
    first, second = tmp_path / "1.caffemodel.h5", tmp_path / "2.caffemodel.h5"
    ones, zeros = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    write_model(first, {"ip": {0: ones, 1: zeros}, "ip2": {0: ones[:, :2], 1: zeros}})
    write_model(second, {"ip": {0: 2 * ones, 1: zeros + 1}})
    net = load_net(text, weights=[first, str(second)])
    assert net(x=torch.ones(1, 3))["z"].tolist() == [[14, 14]]


def test_weights_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    write_model(path, {"ip": {0: np.ones((2, 4), np.float32), 1: np.zeros(2, np.float32)}})
    text = fails("\n".join([inputs(x=(2, 3)), ip("ip", "x", "y", 2)]), weights=path)
    assert "(2, 4)" in text and "(2, 3)" in text and "'ip'" in text


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("loss_weight is inf", 'type: "Sigmoid" loss_weight: inf'),
        ("param.lr_mult is nan", 'type: "PReLU" param { lr_mult: nan }'),
        ("param.force_mult is -inf", 'type: "PReLU" param { force_mult: -inf }'),
        ("prelu_param.filler.value is nan", 'type: "PReLU" prelu_param { filler { type: "constant" value: nan } }'),
        ("power_param.scale is nan", 'type: "Power" power_param { scale: nan }'),
        ("relu_param.negative_slope is inf", 'type: "ReLU" relu_param { negative_slope: inf }'),
        ("threshold_param.threshold is nan", 'type: "Threshold" threshold_param { threshold: nan }'),
        ("", 'type: "Threshold" threshold_param { threshold: inf }'),
        ("", 'type: "Clip" clip_param { min: -inf max: inf }'),
    ],
)
def test_numbers_that_are_not_finite(field: str, text: str) -> None:
    net = f'{inputs(x=(2, 3))} layer {{ name: "l" bottom: "x" top: "y" {text} }}'
    if field:
        assert fails(net) == f"<text>:1: layer 'l': {field}; expected a finite number"
    else:
        load_net(net)
