"""Embed: rows by index, and its checks."""

from __future__ import annotations

import pytest
import torch

from forcereg.errors import ForceregError
from tests.layers.nets import gradcheck, layer_error, layer_net, noise, run


def embed(shape: tuple[int, ...], more: str = "") -> torch.nn.Module:
    filler = "weight_filler { type: 'gaussian' } bias_filler { value: 2 }"
    return layer_net("Embed", f"embed_param {{ num_output: 3 input_dim: 5 {filler} {more} }}", shape)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2), ()], ids=str)
@pytest.mark.parametrize("more", ["", "bias_term: false"])
def test_rows(shape: tuple[int, ...], more: str) -> None:
    net = embed(shape, more).double()
    index = torch.randint(5, shape, generator=torch.Generator().manual_seed(0)).double()
    (y,) = run(net, index)
    weight, *bias = net.params["l"]
    assert [tuple(blob.shape) for blob in net.params["l"]] == [(5, 3), (3,)][: 2 - bool(more)]
    assert tuple(y.shape) == net.shapes["y0"] == (*shape, 3)
    torch.testing.assert_close(y, weight[index.long()] + (bias[0] if bias else 0))
    assert gradcheck(net, index)


def test_indices_get_no_gradient() -> None:
    index = torch.tensor([0.0, 4.0, 4.0]).requires_grad_()
    net = embed((3,))
    (y,) = run(net, index)
    y.sum().backward()
    assert index.grad is None
    assert net.params["l"][0].grad.tolist() == [[1.0] * 3, *[[0.0] * 3] * 3, [2.0] * 3]


def test_fractions_are_cut_off() -> None:
    net = embed((3,))
    (y,) = run(net, torch.tensor([1.9, -0.9, 4.5]))
    assert torch.equal(y, run(net, torch.tensor([1.0, 0.0, 4.0]))[0])


@pytest.mark.parametrize("value", [5.0, -1.0, float("nan"), 1e30], ids=str)
def test_an_index_without_row(value: float) -> None:
    with pytest.raises(ForceregError) as info:
        run(embed((3,)), torch.tensor([0.0, value, 4.0]))
    text = (
        f"<text>:2: layer 'l': index {value:g} in 'x0' has no row; expected 0 to 4; correct the data or input_dim (5)"
    )
    assert str(info.value) == text


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("input_dim: 5", "num_output is missing"),
        ("num_output: 3", "input_dim is missing; set embed_param { input_dim: N }"),
        ("num_output: 3 input_dim: 4000000000", "blob 'weight' would have shape [4000000000, 3]"),
    ],
)
def test_bad_settings(param: str, message: str) -> None:
    assert message in layer_error("Embed", f"embed_param {{ {param} }}", (2,))


def test_bad_arity() -> None:
    assert "takes 1" in layer_error("Embed", "embed_param { num_output: 3 input_dim: 5 }", (2,), (2,))


def test_one_row_per_index_is_the_one_hot_product() -> None:
    net = embed((6,), "bias_term: false").double()
    index = torch.tensor([0, 3, 3, 1, 4, 2])
    grad = noise(6, 3)
    (y,) = run(net, index.double())
    y.backward(grad)
    (weight,) = net.params["l"]
    hot = torch.nn.functional.one_hot(index, 5).double()
    torch.testing.assert_close(y, hot @ weight)
    torch.testing.assert_close(weight.grad, hot.t() @ grad)
