"""Rank clipping in a loop of one's own: what a pair computes, and the optimizer's history."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import forcereg
from forcereg.lowrank.clipping import Kind, cut
from forcereg.nn import decompose, rank_clipping

PAIRS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(4, 8, 3, padding=1), (3, 4, 6, 6)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), (3, 4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2), (3, 6, 4, 4)),
    "linear": (nn.Linear(7, 6), (3, 7)),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "force": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def pair(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(2)
    layer, shape = PAIRS[name]
    x = torch.randn(shape)
    return decompose(copy.deepcopy(layer), x, rule=forcereg.MaxError(0), fc=True, even_if_dearer=True).model, x


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_kept_is_the_best_of_its_rank(name: str) -> None:
    model, x = pair(name)
    before = model(x)
    clipped = rank_clipping(model, energy=0.7)
    (rank,), (kept,) = clipped.ranks.values(), clipped.kept.values()
    # the decomposition of the whole layer knows the best error at that rank
    best = decompose(PAIRS[name][0], x, rule=forcereg.Ranks([rank]), fc=True).report["layers"][0]
    assert 0.7 <= kept == pytest.approx(1 - best["error"], abs=1e-5) and best["rank"] == rank
    assert model(x).shape == before.shape and str(model[0]) != str(pair(name)[0][0])  # type: ignore[index]
    assert not rank_clipping(model, energy=1.0).kept, "nothing is left to cut"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_goes_on(name: str) -> None:
    """With the new weights, and a history of their shapes."""
    model, x = pair("groups")
    optimizer = OPTIMIZERS[name](model.parameters())
    if name == "force":
        optimizer = forcereg.nn.Force(optimizer, model, layers=["lowrank"])
    for _ in range(2):
        step(model, optimizer, x)
    old = [one.weight for one in model]  # type: ignore[attr-defined, union-attr]
    history = {key: value.clone() for key, value in optimizer.state[old[0]].items() if value.shape == old[0].shape}
    rank_clipping(model, energy=0.7).tell(optimizer)
    new = [one.weight for one in model]  # type: ignore[attr-defined, union-attr]
    assert {id(one) for group in optimizer.param_groups for one in group["params"]} == set(map(id, model.parameters()))
    assert not {*old}.intersection(optimizer.state) and history
    for key in history:
        assert [optimizer.state[one][key].shape for one in new] == [one.shape for one in new], key
    step(model, optimizer, x)
    assert all(one.isfinite().all() for one in model.parameters())


def test_momentum_is_projected_as_a_gradient() -> None:
    model, x = pair("linear")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer, x)
    first, second = model  # type: ignore[misc]
    expected = cut(first.weight.detach()[None], second.weight.detach()[None], 0.7)
    momenta = [optimizer.state[one.weight]["momentum_buffer"] for one in (first, second)]
    rank_clipping(model, energy=0.7).tell(optimizer)
    assert expected is not None
    for one, other in zip(expected.project(Kind.GRADIENT, *(one[None] for one in momenta)), model, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(
            optimizer.state[other.weight]["momentum_buffer"].double(), one[0], rtol=1e-5, atol=1e-7
        )


def test_unknown_history_begins_anew() -> None:
    model, x = pair("linear")
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.01)
    step(model, optimizer, x)
    rank_clipping(model, energy=0.7).tell(optimizer)
    assert not any(one.weight in optimizer.state for one in model)  # type: ignore[attr-defined, union-attr]
    step(model, optimizer, x)


def test_what_stays() -> None:
    """Frozen pairs and chains of other methods; without any pair it is an error."""
    x = torch.randn(1, 4, 6, 6)
    model = decompose(PAIRS["conv"][0], x, rule=forcereg.MaxError(0), method="vh", even_if_dearer=True).model
    with pytest.raises(forcereg.UsageError, match=r"has no pair X.lowrank -> X.linear that learns"):
        rank_clipping(model)
    model = pair("conv")[0].requires_grad_(False)
    with pytest.raises(forcereg.UsageError, match="that learns"):
        rank_clipping(model)
    with pytest.raises(forcereg.UsageError, match="the energy to keep is 2; expected 0 to 1"):
        rank_clipping(model, energy=2)
