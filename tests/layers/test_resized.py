"""Layers whose bottoms change their sizes, as Caffe's do where each batch is an image of its own size."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import load_layer


def resized(shape: torch.Size, by: tuple[int, int]) -> tuple[int, ...]:
    """A shape with other sizes in its last two axes, if it has more than those of items and channels."""
    *rest, height, width = shape if len(shape) > 2 else (*shape, 0, 0)
    return (*rest, max(1, height + by[0]), max(1, width + by[1])) if len(shape) > 3 else tuple(shape)


def built(case: Case, shapes: dict[str, tuple[int, ...]], state: dict[str, Tensor]) -> Net | None:
    """The case's net for inputs of these shapes with these weights; None if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = load_net(case.attrs["prototxt"], phase=case.attrs["phase"], input_shapes=shapes)
        net.load_state_dict(state)
    except (ForceregError, RuntimeError):  # weights of other shapes
        return None
    return net


@pytest.mark.parametrize("by", [(1, 2), (3, 0), (-1, -2), (-9, -9)], ids=str)
@pytest.mark.parametrize("case", golden_cases("layers"))
def test_a_layer_is_as_one_made_for_the_size_at_hand(case: Case, by: tuple[int, int]) -> None:
    net, inputs, _ = load_layer(case)
    shapes = {name: resized(x.shape, by) for name, x in inputs.items()}
    if all(shape == tuple(inputs[name].shape) for name, shape in shapes.items()):
        return
    given = {}
    for name, x in inputs.items():
        place = torch.arange(torch.Size(shapes[name]).numel()) % max(1, x.numel())
        given[name] = x.flatten()[place].reshape(shapes[name]) if x.numel() else torch.zeros(shapes[name])
    state = {name: value.clone() for name, value in net.state_dict().items()}
    fresh = built(case, shapes, state)
    if fresh is None:
        with pytest.raises(ForceregError, match="layer '"):
            net(given)
        return
    results = []
    for one in (net, fresh):
        torch.manual_seed(1)
        results.append(one(given))
    for name, expected in results[1].items():
        assert results[0][name].shape == expected.shape == torch.Size(fresh.shapes[name])
        torch.testing.assert_close(results[0][name], expected, rtol=0, atol=0, equal_nan=True)
