"""Ways to spread a budget: what a rank loses, by each method, against the chains that it makes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.lowrank.budget import by_budget
from forcereg.lowrank.choosers import Chooser, Energy, Remainder, Responses
from forcereg.lowrank.factor import Method, spectrum
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.ladder import aware as aware_methods
from forcereg.lowrank.metric import RIDGE, Metric, without
from forcereg.lowrank.ranks import Candidate, Whole
from tests.lowrank.candidates import candidate, total, weight

SINGLE = ["pca", "svd", "kmeans", "vh", "cp"]
EVERY = [*SINGLE, "tucker2"]
SHAPES = [(6, 3, 3, 2), (9, 1, 2, 2), (1, 4, 2, 2)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(size: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """Of inputs whose directions differ much in power; of a lower `rank` if given."""
    mixing = normal(size, rank or size, seed=seed) * torch.logspace(0, -2, rank or size, dtype=torch.float64)
    return mixing @ mixing.T


def metrics(method: Method) -> list[Metric]:
    count, *rest = method.weight.shape
    inputs = moments(torch.Size(rest).numel())
    common = without(torch.nn.functional.normalize(torch.ones(count, dtype=torch.float64), dim=0))
    return [Metric(), Metric(inputs=inputs), Metric(common), Metric(common, inputs), method.behind()]


def needed(method: str) -> None:
    if method in ("cp", "kmeans"):
        pytest.importorskip("tensorly" if method == "cp" else "sklearn", reason="of the extra lowrank")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", SINGLE)
def test_losses_are_those_of_the_chains(method: str, shape: tuple[int, ...]) -> None:
    needed(method)
    one = factorizer.get(method)(normal(*shape))
    for metric in metrics(one):
        found, expected = one.losses(metric), Method.losses(one, metric)
        for rank in range(1, one.full_rank + 1):
            assert found(rank) == pytest.approx(expected(rank), rel=1e-9, abs=1e-10 * metric.size(one.weight))


@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (3, 16, 1, 2), (9, 1, 2, 2), (16, 3, 2)], ids=str)
def test_losses_of_pairs_are_those_of_the_cut_in_their_own_bases(shape: tuple[int, ...]) -> None:
    one = factorizer.get("tucker2")(normal(*shape))
    out, into = (torch.linalg.svd(one.weight.movedim(axis, 0).flatten(1), full_matrices=False)[0] for axis in (0, 1))
    inputs = moments(one.weight[0].numel())
    for metric in (Metric(), Metric(inputs=inputs), one.behind(), Metric(one.behind().outputs, inputs)):
        found = one.losses(metric)
        for r, s in itertools.product(*(range(1, full + 1) for full in one.full_ranks)):
            kept = torch.einsum(
                "nr,mr,mc...,cs,ds->nd...", out[:, :r], out[:, :r], one.weight, into[:, :s], into[:, :s]
            )
            expected = metric.size(one.weight - kept)
            assert found((r, s)) == pytest.approx(expected, rel=1e-8, abs=1e-10 * metric.size(one.weight))


@pytest.mark.parametrize("method", ["pca", "svd", "vh"])
def test_a_spectrum_behind_its_first_value(method: str) -> None:
    values = weight(8, 4, 3, 3)
    unfolded = values.permute(1, 2, 3, 0).reshape(12, 24) if method == "vh" else values
    energies = spectrum(unfolded)
    one = Remainder().seen([candidate("a", values, method=method)], {})[0]
    for rank in range(1, one.ladder.full_rank + 1):
        assert one.error(rank) == pytest.approx(float(energies[rank:].sum() / energies[1:].sum()), abs=1e-12)


def forced(count: int, channels: int, common: float) -> Tensor:
    """Filters that are nearly alike, with small differences that need as many outputs as inputs."""
    fall = 0.6 ** torch.arange(8, dtype=torch.float64)
    left, right, core = normal(count, 8) * fall, normal(channels, 8, seed=1), normal(8, 3, 3, seed=2)
    apart = torch.einsum("nr,cr,ryx->ncyx", left, right, core) + 0.02 * normal(count, channels, 3, 3, seed=3)
    return apart + common * normal(1, channels, 3, 3, seed=4)


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_pairs_of_a_forced_weight_are_balanced(share: float) -> None:
    """By the energy all goes into the inputs of the one common filter."""
    one = candidate("a", forced(24, 16, 10.0), method="tucker2")
    energy, remainder = (by_budget("macs", share, one.dense, choose=by())([one])["a"] for by in (Energy, Remainder))
    assert isinstance(energy, tuple) and energy[0] == 1 and energy[1] > 4
    assert isinstance(remainder, tuple) and remainder[0] > 1 and remainder[1] <= 2 * remainder[0]


def test_a_pair_without_a_second_direction_loses_all_that_is_behind_the_first() -> None:
    one = Remainder().seen([candidate("a", weight(8, 6, 3, 3), method="tucker2")], {})[0]
    assert [one.error(pair) for pair in ((1, 1), (1, 6), (8, 1))] == pytest.approx([1, 1, 1])
    assert one.error((8, 6)) == pytest.approx(0) and 0 < one.error((4, 4)) < one.error((2, 2)) < 1


@pytest.mark.parametrize("method", EVERY)
def test_nothing_behind_the_leading_direction_counts_as_no_loss(method: str) -> None:
    needed(method)
    alike = normal(5, 1, 1, 1, seed=1) * normal(1, 3, 1, 1, seed=2) * normal(1, 1, 3, 3)
    alike = alike if method != "vh" else normal(5, 1, 1, 1) * normal(1, 3, 3, 1, seed=1) * normal(1, 1, 1, 3, seed=2)
    one = Remainder().seen([candidate("a", alike, method=method)], {})[0]
    assert one.error((1, 1) if method == "tucker2" else 1) == 0


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "deficient"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("method", "aware"), [*((one, False) for one in EVERY), *((one, True) for one in aware_methods())]
)
def test_errors_of_responses(method: str, groups: int, aware: bool, rank: int | None) -> None:
    """As inputs of those moments give them with what the chains come to."""
    needed(method)
    values = weight(8, 3, 2, 2)
    of_inputs = torch.stack([moments(12, rank, group) for group in range(groups)])
    ladder = Ladder(values, method, groups, of_inputs if aware else None)
    one = Candidate("a", "Convolution", "", method, ladder, total([candidate("b", values)]), (9,) * len(ladder.slots))
    seen = Responses().seen([one], {"a": of_inputs})[0]
    # the moments' eigenvectors, each as long as its value says: inputs with just these moments
    found = torch.linalg.eigh(of_inputs)
    inputs = found.eigenvectors * found.eigenvalues.clamp(min=0).sqrt()[:, None]

    def size(error: Tensor) -> float:
        return float((error.flatten(1).unflatten(0, (groups, -1)) @ inputs).square().sum())

    for at in ladder.alike:
        expected = size(values - ladder.factors(at).reconstruct()) / size(values)
        # pairs are told by their own bases, from which HOOI goes on
        close: dict[str, Any] = {"rel": 0.5, "abs": 1e-2} if method == "tucker2" else {"rel": 1e-2, "abs": 100 * RIDGE}
        assert seen.error(at) == pytest.approx(expected, **close)


@pytest.mark.parametrize("choose", [Responses(), Remainder()], ids=["responses", "remainder"])
@given(seed=st.integers(0, 1000), shares=st.tuples(st.floats(0.4, 1), st.floats(0.4, 1)))
@settings(max_examples=10)
def test_none_of_all_choices_loses_less(choose: Chooser, seed: int, shares: tuple[float, float]) -> None:
    """And a larger budget never loses more."""
    found = [
        candidate("pca", weight(6, 3, 3, 3, seed=seed), places=40),
        candidate("vh", weight(8, 3, 3, 3, seed=seed + 1), 2, "vh"),
        candidate("pair", weight(4, 4, 2, 2, seed=seed + 2), method="tucker2"),
    ]
    known = {one.name: moments(36, seed=seed)[None, :27, :27].expand(2, -1, -1) for one in found[:2]}
    known["pair"] = moments(16, seed=seed)[None]
    seen, whole = choose.seen(found, known), total(found)
    every = list(itertools.product(*([*one.worthwhile("macs"), Whole("")] for one in seen)))
    cost = [sum(one.cost(pick).macs or 0 for one, pick in zip(found, picks, strict=True)) for picks in every]
    lost = [
        sum((one.dense.macs or 0) * one.error(pick) for one, pick in zip(seen, picks, strict=True)) for picks in every
    ]
    last = float("inf")
    for share in sorted(shares):
        room = int(share * (whole.macs or 0))
        if room < min(cost):
            continue
        picked = by_budget("macs", share, whole, False, choose, lambda: known)(found)
        now = sum((one.dense.macs or 0) * one.error(picked[one.name]) for one in seen)
        assert now == pytest.approx(min(loss for loss, spent in zip(lost, cost, strict=True) if spent <= room))
        assert now <= last + 1e-6
        last = now


def test_what_is_worked_out_once_serves_every_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    one = candidate("a", weight(12, 6, 3, 3))
    asked = []
    losses = type(one.ladder._methods[0]).losses
    monkeypatch.setattr(
        type(one.ladder._methods[0]), "losses", lambda self, metric: asked.append(metric) or losses(self, metric)
    )
    for share in (0.3, 0.5, 0.7):
        by_budget("macs", share, one.dense, choose=Remainder())([one])
    assert len(asked) == 1 and one.error(3) == Ladder(weight(12, 6, 3, 3)).error(3)
