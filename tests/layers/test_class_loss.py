"""HingeLoss, MultinomialLogisticLoss and InfogainLoss against direct formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema import BlobProto
from tests.data.lmdbs import put_lmdb, raw
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, layer_text, noise, run

# -- HingeLoss and MultinomialLogisticLoss: one label per item

ITEMS = [((4, 3), (4,)), ((3, 2, 2), (3, 1, 1, 1)), ((2, 5, 1, 1), (2, 1)), ((3,), (3,))]


@pytest.mark.parametrize("norm", [None, "L1", "L2"])
@pytest.mark.parametrize(("shape", "label_shape"), ITEMS, ids=str)
def test_hinge_loss(shape: tuple[int, ...], label_shape: tuple[int, ...], norm: str | None) -> None:
    x = noise(*shape)
    rows = x.numpy().reshape(shape[0], -1)
    labels = np.random.default_rng(0).integers(0, rows.shape[1], shape[0])
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        for c, score in enumerate(row):
            margin = max(0, 1 - (score if c == label else -score))
            total += margin**2 if norm == "L2" else margin
    param = f"hinge_loss_param {{ norm: {norm} }}" if norm else ""
    net = layer_net("HingeLoss", param, shape, label_shape).double()
    target = torch.from_numpy(labels).double().reshape(label_shape)
    assert run(net, x, target)[0].item() == pytest.approx(total / shape[0])
    assert (x.abs() - 1).abs().min() > 1e-3
    assert gradcheck(net, x.requires_grad_(), target)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_gradient_is_zero_at_the_margin(norm: str) -> None:
    x = torch.tensor([[1.0, -1.0, -1.0], [2.0, 0.0, -3.0]], requires_grad=True)
    (loss,) = apply("HingeLoss", f"hinge_loss_param {{ norm: {norm} }}", x, torch.zeros(2))
    loss.backward()
    assert x.grad.tolist() == [[0, 0, 0], [0, 0.5 if norm == "L1" else 1, 0]]


@pytest.mark.parametrize(("shape", "label_shape"), ITEMS, ids=str)
def test_multinomial_logistic_loss(shape: tuple[int, ...], label_shape: tuple[int, ...]) -> None:
    p = noise(*shape).sigmoid()
    rows = p.numpy().reshape(shape[0], -1)
    labels = np.random.default_rng(0).integers(0, rows.shape[1], shape[0])
    net = layer_net("MultinomialLogisticLoss", "", shape, label_shape).double()
    target = torch.from_numpy(labels).double().reshape(label_shape)
    assert run(net, p, target)[0].item() == pytest.approx(-np.log(rows[np.arange(shape[0]), labels]).mean())
    assert gradcheck(net, p.requires_grad_(), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_clamped_probability(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0, 1.0], [0.75, 0.25], [-1.0, 1e-21], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    before = p.detach().clone()
    (loss,) = apply("MultinomialLogisticLoss", "", p, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype))
    assert loss.item() == pytest.approx((2 * math.log(1e20) + math.log(4)) / 4)
    loss.backward()
    expected = torch.tensor([[-1e20 / 4, 0], [0, -1], [0, -1e20 / 4], [-0.25, 0]], dtype=dtype)
    torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=0)
    assert torch.equal(p.detach(), before)


def test_nan_is_no_probability() -> None:
    (loss,) = apply("MultinomialLogisticLoss", "", torch.tensor([[math.nan, 1.0]]), torch.zeros(1))
    assert loss.isnan()


@pytest.mark.parametrize("kind", ["HingeLoss", "MultinomialLogisticLoss"])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (3,)), "labels [3] hold 3 values; scores [4, 3] with axis 1 need 4"),
        (((4, 3, 2), (4, 2)), "labels [4, 2] hold 8 values; scores [4, 6] with axis 1 need 4"),
        (((), ()), "bottom 0 has no axes; expected items along axis 0"),
        (((4, 3),), "has 1 bottom blobs; type"),
    ],
)
def test_bad_bottoms(kind: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error(kind, "", *shapes)


# -- InfogainLoss


def write_blob(path: Path, values: np.ndarray, double: bool = False) -> None:
    blob = BlobProto(num=1, channels=1, height=len(values), width=len(values))
    (blob.double_data if double else blob.data).extend(values.ravel().tolist())
    path.write_bytes(blob.SerializeToString())


@given(
    st.sampled_from([((4, 3), 1), ((2, 3, 2, 2), 1), ((2, 2, 3), 2), ((2, 2, 3), -1), ((3, 4), 0), ((5,), 0)]),
    st.sampled_from([None, "FULL", "VALID", "BATCH_SIZE", "NONE"]),
    st.sampled_from([None, 0, 2, 255, -1]),
    st.integers(0, 100),
)
def test_infogain_loss(
    shape_axis: tuple[tuple[int, ...], int], mode: str | None, ignore: int | None, seed: int
) -> None:
    shape, axis = shape_axis
    random = np.random.default_rng(seed)
    x, classes = random.normal(size=shape) * 3, shape[axis]
    matrix = random.normal(size=(classes, classes))
    labels = random.integers(0, classes, x.size // classes)
    if ignore is not None:
        labels[random.random(labels.size) < 0.4] = ignore
    text = (f"normalization: {mode} " if mode else "") + (f"ignore_label: {ignore}" if ignore is not None else "")
    param = f"infogain_loss_param {{ axis: {axis} }} loss_param {{ {text} }}"
    scores = torch.from_numpy(x).requires_grad_()
    bottoms = (scores, torch.from_numpy(labels).double(), torch.from_numpy(matrix))
    loss, prob = apply("InfogainLoss", param, *bottoms, tops=2)

    rows = np.moveaxis(x, axis, -1).reshape(-1, classes)
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    valid = labels != ignore
    gains = matrix[np.where(valid, labels, 0)]
    outer = math.prod(shape[: axis % len(shape)])
    z = max(1, {"FULL": labels.size, "BATCH_SIZE": outer, "NONE": 1}.get(mode or "VALID", valid.sum()))
    assert loss.item() == pytest.approx(-(gains * np.log(p))[valid].sum() / z)
    np.testing.assert_allclose(np.moveaxis(prob.numpy(), axis, -1).reshape(-1, classes), p)
    loss.backward()
    grad = np.where(valid[:, None], p * gains.sum(1, keepdims=True) - gains, 0) / z
    np.testing.assert_allclose(np.moveaxis(scores.grad.numpy(), axis, -1).reshape(-1, classes), grad, atol=1e-12)


def test_infogain_of_the_identity_is_softmax_loss() -> None:
    x, labels = noise(4, 3), torch.arange(4.0).double() % 3
    (infogain,) = apply("InfogainLoss", "", x, labels, torch.eye(3).double())
    torch.testing.assert_close(infogain, apply("SoftmaxWithLoss", "", x, labels)[0])


@pytest.mark.parametrize("low", [-100.0, -1e4, -math.inf])
def test_infogain_clamps_the_value_and_not_the_gradient(low: float) -> None:
    scores = torch.tensor([[0.0, low]], requires_grad=True)
    matrix = torch.tensor([[0.0, 0.0], [0.5, 2.0]], requires_grad=True)
    net = layer_net("InfogainLoss", "", (1, 2), (1,), (2, 2))
    (loss,) = run(net, scores, torch.ones(1), matrix)
    assert loss.item() == pytest.approx(-2 * math.log(1e-20))
    loss.backward()
    assert scores.grad.tolist() == [[2, -2]] and matrix.grad is None


def test_infogain_gradcheck() -> None:
    net = layer_net("InfogainLoss", "infogain_loss_param { axis: -1 }", (2, 2, 3), (2, 2), (3, 3))
    labels = torch.tensor([[0.0, 2], [1, 1]]).double()
    assert gradcheck(net, noise(2, 2, 3).requires_grad_(), labels, noise(3, 3, seed=1))


@pytest.mark.parametrize("double", [False, True], ids=["data", "double_data"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_infogain_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: bool, relative: bool) -> None:
    matrix = noise(3, 3, seed=2).float()
    write_blob(tmp_path / "h.binaryproto", matrix.numpy(), double)
    monkeypatch.chdir(tmp_path)
    source = "h.binaryproto" if relative else str(tmp_path / "h.binaryproto")
    x, labels = noise(4, 3), torch.tensor([0.0, 2, 1, 1]).double()
    (found,) = apply("InfogainLoss", f'infogain_loss_param {{ source: "{source}" }}', x, labels)
    (expected,) = apply("InfogainLoss", "", x, labels, matrix.double())
    torch.testing.assert_close(found, expected)


def test_bottom_2_beats_the_file() -> None:
    param = 'infogain_loss_param { source: "is/not/opened" }'
    (loss,) = apply("InfogainLoss", param, torch.zeros(1, 2), torch.zeros(1), torch.eye(2))
    assert loss.item() == pytest.approx(math.log(2))


def test_the_matrix_from_a_file_is_no_blob(tmp_path: Path) -> None:
    write_blob(tmp_path / "h", np.eye(2))
    net = layer_net("InfogainLoss", f'infogain_loss_param {{ source: "{tmp_path}/h" }}', (1, 2), (1,))
    assert net.params["l"] == () and not net.state_dict()


def test_bad_infogain_files(tmp_path: Path) -> None:
    write_blob(tmp_path / "small", np.eye(2))
    (tmp_path / "junk").write_bytes(b"\xff" * 9)
    for name, message in (
        ("small", "holds 4 values; 3 classes need 9"),
        ("junk", "is not a BlobProto; expected a binary file as Caffe writes"),
        ("absent", "cannot be read (No such file or directory); correct the path"),
        ("", "cannot be read (it is a folder, expected a regular file); correct the path"),
    ):
        param = f'infogain_loss_param {{ source: "{tmp_path}/{name}" }}'
        text = layer_error("InfogainLoss", param, (2, 3), (2,))
        assert text.startswith(f"infogain source {tmp_path / name} ") and text.endswith(message)


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("", ((2, 3), (2,)), "has no infogain matrix; give it as bottom 2, or as a file by infogain_loss_param source"),
        ("", ((2, 3), (2,), (3, 2)), "infogain matrix [3, 2] holds 6 values; 3 classes need 9"),
        ("", ((2, 3), (3,), (3, 3)), "labels [3] hold 3 values; scores [2, 3] with axis 1 need 2"),
        ("infogain_loss_param { axis: 2 }", ((2, 3), (2,), (3, 3)), "axis 2 is outside its 2-axis bottom"),
        (
            "loss_param { normalize: true }",
            ((2, 3), (2,), (3, 3)),
            "which InfogainLoss doesn't take; use norm",
        ),
    ],
)
def test_bad_infogain(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("InfogainLoss", param, *shapes)


# -- labels out of range

LOSSES = {
    "HingeLoss": "",
    "MultinomialLogisticLoss": "",
    "InfogainLoss": 'infogain_loss_param { source: "H" }',
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("label", [3, -1])
def test_a_wrong_label_in_an_input_is_an_error(
    kind: str, label: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_blob(Path("H"), np.eye(3))
    net = load_net(layer_text(kind, LOSSES[kind], (2, 3), (2,)))
    with pytest.raises(ForceregError, match=r"layer 'l': cannot run on bottoms \[2, 3\], \[2\]"):
        net(x0=torch.zeros(2, 3), x1=torch.tensor([0.0, label]))


DATA = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "db" batch_size: 2 backend: LMDB }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 3 }} }}
layer {{ name: "loss" type: "{kind}" bottom: "ip" bottom: "label" {param} }}"""


@pytest.mark.parametrize("kind", LOSSES)
def test_the_data_layer_finds_wrong_labels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_blob(Path("H"), np.eye(3))
    image = np.zeros((1, 2, 2), np.uint8)
    put_lmdb(tmp_path / "db", [(b"%d" % i, raw(image, label)) for i, label in enumerate([0, 2, 1, 3])])
    net = load_net(DATA.format(kind=kind, param=LOSSES[kind]))
    with pytest.raises(ForceregError, match="record '3': label 3 found, expected 0 to 2 for <text>:4: layer 'loss'"):
        for _ in range(2):
            net()
    net.close()
