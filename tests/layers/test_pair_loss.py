"""EuclideanLoss, SigmoidCrossEntropyLoss and ContrastiveLoss against direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

# -- EuclideanLoss


def test_euclidean_loss() -> None:
    a, b = noise(3, 4).requires_grad_(), noise(3, 4, seed=1).requires_grad_()
    net = layer_net("EuclideanLoss", "", (3, 4), (3, 4)).double()
    (loss,) = run(net, a, b)
    assert loss.item() == pytest.approx(((a - b) ** 2).sum().item() / 6)
    assert gradcheck(net, a, b)


def test_euclidean_loss_of_equal_counts() -> None:
    (loss,) = apply("EuclideanLoss", "", torch.ones(2, 4), torch.zeros(2, 2, 2))
    assert loss.item() == 2


@pytest.mark.parametrize("kind", ["EuclideanLoss", "SigmoidCrossEntropyLoss"])
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4, 3), (3, 4)), ((), ())], ids=str)
def test_unequal_bottoms(kind: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = map(list, shapes)
    expected = f"bottoms {a} and {b} must hold the same number of values, for the same number of items"
    assert layer_error(kind, "", *shapes) == expected


# -- SigmoidCrossEntropyLoss


@given(
    st.sampled_from([(4,), (3, 2), (2, 3, 2), (2, 1, 2, 2)]),
    st.sampled_from([None, "FULL", "VALID", "BATCH_SIZE", "NONE"]),
    st.sampled_from([None, 0, 1, -1, 9]),
    st.integers(0, 100),
)
def test_sigmoid_cross_entropy(shape: tuple[int, ...], mode: str | None, ignore: int | None, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, t = random.normal(size=shape) * 3, random.choice([-1.5, -0.25, 0, 0.25, 1, 1.75, 2], shape)
    text = (f"normalization: {mode} " if mode else "") + (f"ignore_label: {ignore}" if ignore is not None else "")
    logits = torch.from_numpy(x).requires_grad_()
    param = f"loss_param {{ {text} }}"
    (loss,) = apply("SigmoidCrossEntropyLoss", param, logits, torch.from_numpy(t))

    valid = np.trunc(t) != ignore if ignore is not None else np.full(shape, True)
    z = max(1, {"FULL": x.size, "VALID": valid.sum(), "NONE": 1}.get(mode or "", shape[0]))
    p = 1 / (1 + np.exp(-x))
    terms = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert loss.item() == pytest.approx(terms[valid].sum() / z)
    loss.backward()
    np.testing.assert_allclose(logits.grad, np.where(valid, p - t, 0) / z, atol=1e-12)


@pytest.mark.parametrize(("param", "z"), [("", 2), ("normalize: true", 5), ("normalize: false", 2)])
def test_sigmoid_cross_entropy_takes_the_old_normalize(param: str, z: int) -> None:
    targets = torch.tensor([[1.0, 0, 9], [0, 0, 1]])
    loss = apply("SigmoidCrossEntropyLoss", f"loss_param {{ ignore_label: 9 {param} }}", torch.zeros(2, 3), targets)[0]
    assert loss.item() == pytest.approx(5 * math.log(2) / z)


def test_sigmoid_cross_entropy_of_large_logits() -> None:
    x = torch.tensor([[-1000.0, 1000, -1000, 1000]], requires_grad=True)
    (loss,) = apply("SigmoidCrossEntropyLoss", "", x, torch.tensor([[0.0, 1, 1, 0]]))
    loss.backward()
    assert loss.item() == 2000 and x.grad.tolist() == [[0, 0, -1, 1]]


def test_sigmoid_cross_entropy_gradients() -> None:
    net = layer_net("SigmoidCrossEntropyLoss", "", (3, 4), (3, 2, 2))
    targets = noise(3, 2, 2, seed=1).requires_grad_()
    logits = noise(3, 4).requires_grad_()
    assert gradcheck(net, logits, targets.detach())
    run(net, logits, targets)[0].backward()
    assert targets.grad is None


# -- ContrastiveLoss

LEGACY = "legacy_version: true"


def contrastive(a: np.ndarray, b: np.ndarray, alike: np.ndarray, margin: float, legacy: bool) -> float:
    total = 0.0
    for row in range(len(a)):
        squared = ((a[row] - b[row]) ** 2).sum()
        if int(alike[row]):
            total += squared
        else:
            total += max(0, margin - squared) if legacy else max(0, margin - squared**0.5) ** 2
    return total / len(a) / 2


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("margin", [None, 2.5])
@pytest.mark.parametrize("shape", [(6, 3), (6,), (6, 3, 1, 1)], ids=str)
def test_contrastive_loss(shape: tuple[int, ...], margin: float | None, legacy: bool) -> None:
    a, b = noise(*shape, spread=0.7), noise(*shape, seed=1, spread=0.7)
    alike = torch.tensor([0, 1, 0.9, -1, 0, 2]).double()
    param = (LEGACY if legacy else "") + (f" margin: {margin}" if margin is not None else "")
    (loss,) = apply("ContrastiveLoss", f"contrastive_loss_param {{ {param} }}", a, b, alike)
    expected = contrastive(a.numpy().reshape(6, -1), b.numpy().reshape(6, -1), alike.numpy(), margin or 1, legacy)
    assert loss.shape == () and loss.item() == pytest.approx(expected)


def test_legacy_contrastive_loss_has_the_plain_gradient() -> None:
    net = layer_net("ContrastiveLoss", f"contrastive_loss_param {{ {LEGACY} margin: 2 }}", (6, 3), (6, 3), (6, 1))
    a, b = noise(6, 3).requires_grad_(), noise(6, 3, seed=1).requires_grad_()
    assert ((a - b).square().sum(1) - 2).abs().min() > 1e-3
    assert gradcheck(net, a, b, torch.tensor([[0.0], [1], [0], [1], [0], [0]]).double())


def test_contrastive_gradient_has_a_small_number_in_its_denominator() -> None:
    """One pair at distance 0, one close, one beyond the margin, one alike."""
    a = torch.tensor([[1.0, 1], [1e-3, 0], [3, 4], [3, 4]]).double().requires_grad_()
    b = torch.tensor([[1.0, 1], [0, 0], [0, 0], [0, 0]]).double().requires_grad_()
    alike = torch.tensor([0.0, 0, 0, 1], requires_grad=True)
    net = layer_net("ContrastiveLoss", "contrastive_loss_param { margin: 2 }", (4, 2), (4, 2), (4,)).double()
    run(net, a, b, alike)[0].backward()
    pull = (2 - 1e-3) * 1e-3 / (1e-3 + 1e-4) / 4
    expected = torch.tensor([[0, 0], [-pull, 0], [0, 0], [3 / 4, 1]]).double()
    torch.testing.assert_close(a.grad, expected)
    torch.testing.assert_close(b.grad, -expected)
    assert alike.grad is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (4, 2), (4,)), "bottoms [4, 3] and [4, 2] must hold the same number of values"),
        (((4, 3), (4, 3), (3,)), "bottom 2 [3] must hold one value per pair (4)"),
        (((4, 3), (4, 3), (4, 2)), "bottom 2 [4, 2] must hold one value per pair (4)"),
        (((4, 3, 2), (4, 6), (4,)), "bottom [4, 3, 2] must be of shape (N, C); put a Flatten layer before it"),
        (((4, 3), (4, 3)), "has 2 bottom blobs; type ContrastiveLoss takes 3"),
    ],
)
def test_bad_contrastive_bottoms(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("ContrastiveLoss", "", *shapes)
