"""Rules that look at each layer alone: error bounds, lists, rank configs; and what a layer costs at which rank."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.config import config_of, parse_config, read_config
from forcereg.lowrank.ranks import (
    Candidate,
    Dearer,
    Whole,
    by_energy,
    by_error,
    by_fork_ratio,
    by_list,
    unless_dearer,
)
from tests.lowrank.candidates import candidate, weight

SHARES = st.floats(0, 1)


@pytest.fixture(scope="module")
def pair() -> list[Candidate]:
    return [candidate("a", weight(8, 3, 3, 3)), candidate("b", weight(6, 4, 5, 5, seed=2), groups=2)]


@given(error=SHARES)
def test_by_error_is_the_smallest_rank_within_the_bound(error: float) -> None:
    one = candidate("a", weight(8, 3, 3, 3))
    rank = by_error(error)([one])["a"]
    assert isinstance(rank, int) and one.error(rank) <= error * (1 + 1e-9)
    assert rank == 1 or error == 0 or one.error(rank - 1) > error


@given(energy=SHARES, method=st.sampled_from(["pca", "svd", "vh"]))
def test_energy_means_the_same_for_every_method(energy: float, method: str) -> None:
    one = candidate("a", weight(8, 3, 3, 3), method=method)
    assert by_energy(energy)([one]) == by_error(1 - energy)([one])


@given(ratio=SHARES)
def test_the_forks_ratio_is_the_root_of_the_kept_share(ratio: float) -> None:
    """Its rule: the first rank at which sqrt(cumulative s^2) / norm >= ratio; above 1 - 1e-9 rounding decides."""
    one = candidate("a", weight(8, 3, 3, 3), method="svd")
    squares = torch.linalg.svdvals(weight(8, 3, 3, 3).flatten(1).double()).square()
    kept = (squares.cumsum(0) / squares.sum()).sqrt()
    rank = by_fork_ratio(ratio)([one])["a"]
    assert isinstance(rank, int)
    assert kept[rank - 1] >= ratio - 1e-9 and (rank == 1 or ratio > 1 - 1e-9 or kept[rank - 2] < ratio + 1e-9)


def test_a_list_goes_by_the_files_order(pair: list[Candidate]) -> None:
    assert by_list([3, 4])(pair) == {"a": 3, "b": 4}
    with pytest.raises(UsageError, match=re.escape("1 ranks given; the net has 2 layers to decompose: a, b")):
        by_list([3])(pair)


@pytest.mark.parametrize("rule", [by_error, by_energy, by_fork_ratio])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_shares_out_of_range(rule, value: float) -> None:
    with pytest.raises(UsageError, match="expected 0 to 1"):
        rule(value)


@pytest.mark.parametrize("method", ["pca", "svd", "vh", "tucker2", "cp", "kmeans"])
@pytest.mark.parametrize("measure", ["macs", "params"])
def test_cheaper_are_all_ranks_that_cost_less_than_the_layer(method: str, measure: str) -> None:
    one = candidate("a", weight(12, 6, 3, 3), method=method)
    dense = getattr(one.dense, measure)
    assert list(one.cheaper(measure)) == [rank for rank in one.ranks if getattr(one.cost(rank), measure) < dense]


def test_without_shapes_cheaper_goes_by_values() -> None:
    one = candidate("a", weight(12, 6, 3, 3), places=None)
    assert one.dense.macs is None and one.cheaper() == one.cheaper("params") != one.ranks


# -- rank configs


def test_a_config_says_it_for_each_layer(pair: list[Candidate]) -> None:
    config = parse_config('{"//": "What for.", "b": {"method": "vh", "rank": 4}}', "r.json")
    assert config.methods == {"b": "vh"}
    assert config(pair) == {"a": Whole("r.json doesn't name it"), "b": 4}


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        pytest.param(5, by_list([5]), id="rank"),
        pytest.param({"rank": 5}, by_list([5]), id="object"),
        pytest.param({"error": 0.3}, by_error(0.3), id="error"),
        pytest.param({"energy": 0.7}, by_error(1 - 0.7), id="energy"),
        pytest.param({"error": 0}, by_error(0), id="error-0"),
        pytest.param({"energy": 1}, by_error(0), id="energy-1"),
    ],
)
def test_a_layers_rule(rule, same) -> None:
    one = [candidate("a", weight(8, 3, 3, 3))]
    assert config_of({"a": rule})(one) == same(one)


def test_tucker2_takes_a_pair() -> None:
    one = candidate("a", weight(8, 6, 3, 3), method="tucker2")
    assert config_of({"a": [4, 2]})([one]) == {"a": (4, 2)}
    pca = candidate("a", weight(8, 6, 3, 3))
    with pytest.raises(ForceregError, match=r"layer 'a': rank is \[4, 2\]; expected one number"):
        config_of({"a": [4, 2]})([pca])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "r.json:1:1: Expecting value; expected JSON", id="empty"),
        pytest.param('{"a": 8,\n "b" 9}', "r.json:2:6: Expecting ':' delimiter", id="syntax"),
        pytest.param("[1, 2]", "r.json: names no layer; expected", id="list"),
        pytest.param('{"//": "x"}', "r.json: names no layer; expected", id="comment-only"),
        pytest.param('{"a": 1, "a": 2}', "r.json: 'a' stands twice", id="twice"),
        pytest.param('{"a": 0}', "r.json: layer 'a': rank is 0; expected a whole number", id="rank-0"),
        pytest.param('{"a": 2.5}', "rank is 2.5; expected a whole number", id="fraction"),
        pytest.param('{"a": true}', "rank is true; expected a whole number", id="bool"),
        pytest.param('{"a": null}', "rank is null; expected a whole number", id="null"),
        pytest.param('{"a": []}', "rank is []; expected a whole number", id="no-pair"),
        pytest.param('{"a": [1, -1]}', "rank is [1, -1]; expected", id="pair"),
        pytest.param('{"a": {"method": "pca"}}', "has no rank; expected one of rank, error and energy", id="no-rank"),
        pytest.param('{"a": {"rank": 1, "error": 0.1}}', "has rank and error; expected one", id="two"),
        pytest.param('{"a": {"rnk": 1}}', "has 'rnk'; did you mean \"rank\"?", id="typo"),
        pytest.param('{"a": {"error": 1.5}}', "error is 1.5; expected a number from 0 to 1", id="error-range"),
        pytest.param('{"a": {"energy": NaN}}', "energy is NaN; expected a number from 0 to 1", id="nan"),
        pytest.param('{"a": {"error": "5%"}}', 'error is "5%"; expected a number', id="error-text"),
        pytest.param('{"a": {"rank": 1, "method": 3}}', "method is 3; expected a name", id="method"),
        pytest.param('{"a": ' * 100_000, "r.json: nested too deeply", id="deep"),
        pytest.param('{"a": ' + "9" * 5000 + "}", "r.json: a number of 5,000 digits", id="long-number"),
    ],
)
def test_a_config_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ForceregError, match=re.escape(message)) as caught:
        parse_config(text, "r.json")
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ForceregError, match=r"gone\.json: No such file or directory"):
        read_config(tmp_path / "gone.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ForceregError, match=r"binary\.json: is no UTF-8 text"):
        read_config(tmp_path / "binary.json")


def test_a_rank_out_of_range_says_where(pair: list[Candidate]) -> None:
    with pytest.raises(ForceregError, match=re.escape("<config>: layer 'a': rank is 9; expected 1 to 8")):
        parse_config(json.dumps({"a": 9}))(pair)


@given(error=SHARES, places=st.sampled_from([36, None]), groups=st.sampled_from([1, 2, 6]))
def test_unless_dearer_leaves_whole_what_gets_no_cheaper(error: float, places: int | None, groups: int) -> None:
    layers = [candidate("a", weight(12, 6 // groups, 3, 3), groups, places=places), candidate("b", weight(4, 2, 1, 1))]
    plain, saving = by_error(error)(layers), unless_dearer(by_error(error))(layers)
    for one in layers:
        cheaper = plain[one.name] in one.cheaper()
        assert saving[one.name] == plain[one.name] if cheaper else isinstance(saving[one.name], Dearer)
    assert unless_dearer(by_error(error), ["a", "b"])(layers) == plain
