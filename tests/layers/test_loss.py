"""Softmax, SoftmaxWithLoss and Accuracy against direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.net.load import load_net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, layer_text, noise, run

MOST = 87.33654


def moved(x: np.ndarray, axis: int) -> np.ndarray:
    """Scores as rows, one per label."""
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([((4, 3), 1), ((2, 3, 2, 2), 1), ((2, 2, 3), 2), ((2, 2, 3), -1), ((3, 4), 0), ((5,), 0)]),
    st.sampled_from(["FULL", "VALID", "BATCH_SIZE", "NONE", None]),
    st.sampled_from([None, 0, 2, 255, -1]),
    st.integers(0, 100),
)
def test_softmax_with_loss(
    shape_axis: tuple[tuple[int, ...], int], mode: str | None, ignore: int | None, seed: int
) -> None:
    shape, axis = shape_axis
    random = np.random.default_rng(seed)
    x, classes = random.normal(size=shape) * 3, shape[axis]
    labels = random.integers(0, classes, x.size // classes)
    if ignore is not None:
        labels[random.random(labels.size) < 0.4] = ignore
    settings_text = (f"normalization: {mode} " if mode else "") + (
        f"ignore_label: {ignore}" if ignore is not None else ""
    )
    param = f"softmax_param {{ axis: {axis} }} loss_param {{ {settings_text} }}"
    scores = torch.from_numpy(x).requires_grad_()
    loss, prob = apply("SoftmaxWithLoss", param, scores, torch.from_numpy(labels).double(), tops=2)

    rows = moved(x, axis)
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    valid = labels != ignore
    outer = math.prod(shape[: axis % len(shape)])
    z = {"FULL": labels.size, "BATCH_SIZE": outer, "NONE": 1}.get(mode or "VALID", valid.sum())
    z = max(1, z)
    assert loss.item() == pytest.approx(-np.log(p[valid, labels[valid]]).sum() / z)
    np.testing.assert_allclose(moved(prob.detach().numpy(), axis), p)
    loss.backward()
    grad = p.copy()
    grad[valid, labels[valid]] -= 1
    grad[~valid] = 0
    np.testing.assert_allclose(moved(scores.grad.numpy(), axis), grad / z, atol=1e-12)


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("", 2),
        ("normalize: true", 2),
        ("normalize: false", 4),
        ("normalize: false normalization: NONE", 8),
        ("normalize: true normalization: BATCH_SIZE", 4),
    ],
)
def test_normalization_beats_normalize(param: str, expected: float) -> None:
    """Two images of four items each, half of them ignored; each valid item loses log 2 on equal scores."""
    labels = torch.tensor([[0, 1, 9, 9], [9, 9, 0, 1]]).float()
    (loss,) = apply("SoftmaxWithLoss", f"loss_param {{ ignore_label: 9 {param} }}", torch.zeros(2, 2, 4), labels)
    assert loss.item() == pytest.approx(math.log(2) * 4 / {2: 4, 4: 2, 8: 1}[expected])


@pytest.mark.parametrize("logit", [-100.0, -1000.0, -math.inf])
def test_loss_is_clamped_and_its_gradient_is_not(logit: float) -> None:
    scores = torch.tensor([[0.0, logit], [0.0, 0.0]]).requires_grad_()
    (loss,) = apply("SoftmaxWithLoss", "", scores, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((MOST + math.log(2)) / 2)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[0.5, -0.5], [-0.25, 0.25]]))


def test_nan_propagates() -> None:
    (loss,) = apply("SoftmaxWithLoss", "", torch.tensor([[0.0, math.nan]]), torch.zeros(1))
    assert loss.isnan()


def test_all_ignored_is_zero() -> None:
    scores = noise(2, 3).requires_grad_()
    (loss,) = apply("SoftmaxWithLoss", "loss_param { ignore_label: 1 }", scores, torch.ones(2))
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_the_probabilities_send_no_gradient() -> None:
    scores = noise(2, 3).requires_grad_()
    loss, prob = apply("SoftmaxWithLoss", "", scores, torch.zeros(2), tops=2)
    assert loss.requires_grad and not prob.requires_grad


@pytest.mark.parametrize("labels", [(4,), (4, 1), (4, 1, 1), (2, 2)], ids=str)
def test_label_shapes(labels: tuple[int, ...]) -> None:
    (loss,) = apply("SoftmaxWithLoss", "", torch.zeros(4, 5), torch.arange(4.0).reshape(labels))
    assert loss.item() == pytest.approx(math.log(5))


def test_labels_get_no_gradient() -> None:
    net = layer_net("SoftmaxWithLoss", "", (2, 3), (2,))
    labels = torch.zeros(2, requires_grad=True)
    (loss,) = run(net, torch.zeros(2, 3, requires_grad=True), labels)
    loss.backward()
    assert labels.grad is None


def test_loss_gradient_with_a_weight() -> None:
    net = layer_net("SoftmaxWithLoss", "loss_weight: 3", (2, 3), (2,))
    scores = torch.zeros(2, 3, requires_grad=True)
    total, out = net.forward_loss({"x0": scores, "x1": torch.zeros(2)})
    assert total.item() == pytest.approx(3 * math.log(3)) and out["y0"].item() == pytest.approx(math.log(3))
    total.backward()
    torch.testing.assert_close(scores.grad[0], torch.tensor([-1.0, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("SoftmaxWithLoss", ((4, 3), (3,)), "labels [3] hold 3 values; scores [4, 3] with axis 1 need 4"),
        ("SoftmaxWithLoss", ((4, 3),), "has 1 bottom blobs; type SoftmaxWithLoss takes 2"),
        ("Accuracy", ((4, 3), (4, 3)), "hold 12 values"),
    ],
)
def test_bad_bottoms(kind: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error(kind, "", *shapes)


def test_softmax_axis_out_of_range() -> None:
    assert "axis 2 is outside" in layer_error("SoftmaxWithLoss", "softmax_param { axis: 2 }", (4, 3), (4,))
    assert "axis 2 is outside" in layer_error("Softmax", "softmax_param { axis: 2 }", (4, 3))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax(axis: int) -> None:
    x = noise(2, 3, 4) + 1000
    net = layer_net("Softmax", f"softmax_param {{ axis: {axis} }}", (2, 3, 4)).double()
    (y,) = run(net, x)
    e = (x - x.amax(axis, keepdim=True)).exp()
    torch.testing.assert_close(y, e / e.sum(axis, keepdim=True))
    assert gradcheck(net, x.requires_grad_())


# -- Accuracy


def accuracy(scores: list[list[float]], labels: list[int], param: str = "", tops: int = 1) -> tuple[Tensor, ...]:
    shown = f"accuracy_param {{ {param} }}"
    return apply("Accuracy", shown, torch.tensor(scores), torch.tensor(labels).float(), tops=tops)


@pytest.mark.parametrize(
    ("scores", "label", "param", "right"),
    [
        ([0.1, 0.7, 0.2], 1, "", True),
        ([0.1, 0.7, 0.2], 2, "", False),
        ([0.1, 0.7, 0.2], 2, "top_k: 2", True),
        ([0.1, 0.7, 0.2], 0, "top_k: 2", False),
        ([0.5, 0.5, 0.0], 0, "", False),
        ([0.5, 0.5, 0.0], 1, "", False),
        ([0.5, 0.5, 0.0], 1, "top_k: 2", True),
        ([1.0, 1.0, 1.0], 2, "top_k: 2", False),
        ([math.nan, 0.0, 0.0], 0, "", False),
        ([math.nan, 0.0, 0.0], 0, "top_k: 3", False),
        ([math.nan, 0.0, -1.0], 1, "", False),
        ([math.nan, math.nan, math.nan], 0, "", False),
        ([-math.inf, 0.0, -1.0], 1, "", True),
    ],
)
def test_accuracy_rule(scores: list[float], label: int, param: str, right: bool) -> None:
    assert accuracy([scores], [label], param)[0].item() == right


def test_accuracy_per_class_and_ignored() -> None:
    scores = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    total, per_class = accuracy(scores, [0, 0, 1, 7, 7], "ignore_label: 7", tops=2)
    assert total.item() == pytest.approx(2 / 3)
    assert per_class.tolist() == [0.5, 1, 0]


def test_accuracy_of_nothing_is_zero() -> None:
    assert accuracy([[1.0, 0.0]], [1], "ignore_label: 1")[0].item() == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(-2, 3), st.integers(0, 1000))
def test_accuracy_counts_the_scores_that_are_not_below(top_k: int, axis: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = [2, 3, 2, 3]
    shape[axis] = 4
    x = random.integers(0, 5, shape).astype(np.float32)
    labels = random.integers(0, 4, x.size // 4)
    (found,) = apply(
        "Accuracy",
        f"accuracy_param {{ top_k: {top_k} axis: {axis} }}",
        torch.from_numpy(x),
        torch.from_numpy(labels).float(),
    )
    rows = moved(x, axis)
    others = (rows >= rows[np.arange(len(rows)), labels][:, None]).sum(1) - 1
    assert found.item() == pytest.approx((others < top_k).mean())


@pytest.mark.parametrize("top_k", [0, 4])
def test_bad_top_k(top_k: int) -> None:
    text = layer_error("Accuracy", f"accuracy_param {{ top_k: {top_k} }}", (2, 3), (2,))
    assert text.startswith(f"top_k is {top_k}; expected 1 to")


def test_accuracy_has_no_gradient() -> None:
    net = load_net(layer_text("Accuracy", "", (2, 3), (2,)))
    assert not net(x0=torch.zeros(2, 3, requires_grad=True), x1=torch.zeros(2))["y0"].requires_grad
