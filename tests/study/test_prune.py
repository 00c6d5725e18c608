"""How zeros are spread and limited: closed forms, by accuracies and times that are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.layers.sparse import DENSE
from forcereg.net.load import load_net
from forcereg.schema import SolverParameter
from forcereg.solver.pruning import Limit
from forcereg.study.prune import limits
from forcereg.study.prune.limits import LayerTimes, limit_of
from forcereg.study.prune.report import Row, as_csv, table
from forcereg.study.prune.run import with_l1
from forcereg.study.prune.spread import SHARES, Bearing, bearings, by_sensitivity, counts_of, largest, without
from forcereg.system.events import Tell

# -- spread

sizes = st.integers(10, 1000)
curves = st.lists(st.floats(0, 0.5), min_size=len(SHARES), max_size=len(SHARES))


def bearing(size: int, drops: list[float]) -> Bearing:
    return Bearing(size, [(0.0, 0.0), *zip(SHARES, drops, strict=True), (1.0, 0.9)])


def test_what_a_layer_bears_lies_straight_between_the_points() -> None:
    one = Bearing(100, [(0.0, 0.0), (0.5, 0.0), (0.9, 0.2), (1.0, 0.9)])
    assert [round(one.share(drop), 3) for drop in (0.0, 0.1, 0.2, 0.9)] == [0.5, 0.7, 0.9, 1.0]


@given(st.lists(st.tuples(sizes, curves), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_shares_come_to_the_target_and_hardier_layers_lose_more(
    found: list[tuple[int, list[float]]], target: float
) -> None:
    known = {str(place): bearing(*one) for place, one in enumerate(found)}
    shares = by_sensitivity(known, target)
    total = sum(one.size for one in known.values())
    assert sum(known[name].size * share for name, share in shares.items()) == pytest.approx(target * total, rel=1e-4)
    assert all(0 <= share <= 1 for share in shares.values())
    both = by_sensitivity({"weak": bearing(100, [0.4] * 6), "hardy": bearing(100, [0.0] * 6)}, target)
    assert both["hardy"] >= both["weak"] - 1e-6


def test_a_layer_alone_is_scored_at_every_share() -> None:
    asked: list[Mapping[str, int]] = []

    def accuracy(counts: Mapping[str, int]) -> float:
        asked.append(counts)
        return 0.9 - 0.001 * sum(counts.values())

    weights = {"a": {0: np.zeros((10, 10))}, "b": {0: np.zeros((5, 4))}}
    found = dict(bearings(weights, ["a", "b"], accuracy, 0.9))
    assert asked == [{name: round(share * size)} for name, size in (("a", 100), ("b", 20)) for share in SHARES]
    assert found["a"].points[1] == (0.5, pytest.approx(0.05))


@given(st.floats(0, 1))
def test_the_largest_share_that_keeps_the_accuracy_is_found(edge: float) -> None:
    share = largest(lambda share: float(share <= edge), 1)
    assert share <= edge and edge - share < 0.005


def test_weights_without_their_smallest() -> None:
    weights = {"a": {0: np.array([[3.0, -1.0]], np.float32), 1: np.ones(1)}, "b": {0: np.array([[0.5, 2.0]])}}
    counts = counts_of(weights, ["a", "b"], 0.5, None)
    assert counts == {"a": 1, "b": 1}
    made = without(weights, counts)
    assert made["a"][0].tolist() == [[3, 0]] and made["b"][0].tolist() == [[0, 2]]
    assert made["a"][1] is weights["a"][1] and weights["a"][0].tolist() == [[3, -1]]
    assert counts_of(weights, ["a"], 0.5, {"a": 1.0}) == {"a": 2}


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_l1_is_on_the_layers_weights_alone(decay: float) -> None:
    param = SolverParameter(weight_decay=decay)
    for name in ("a", "b"):
        param.net_param.layer.add(name=name)
    weights = {name: {0: np.ones((2, 2)), 1: np.ones(2)} for name in ("a", "b")}
    with_l1(param, ["a"], weights, 5e-4)
    a, b = param.net_param.layer
    assert a.param[0].regularization_type == "L1"
    assert param.weight_decay * a.param[0].decay_mult == pytest.approx(5e-4)
    # all else as before: the solver's decay, or none
    others = [a.param[1].decay_mult, *(one.decay_mult for one in b.param)]
    assert [param.weight_decay * mult for mult in others] == [pytest.approx(decay)] * len(others)
    assert not any(one.regularization_type for one in (*a.param[1:], *b.param))


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_whoever_shares_a_weight_agrees_on_its_l1(decay: float) -> None:
    param = SolverParameter(weight_decay=decay)
    for name in ("a", "b"):
        param.net_param.layer.add(name=name).param.add(name="w", decay_mult=2)
    with_l1(param, ["a"], {"a": {0: np.ones((2, 2))}, "b": {}}, 5e-4)
    a, b = (layer.param[0] for layer in param.net_param.layer)
    assert a == b and a.regularization_type == "L1" and param.weight_decay * a.decay_mult == pytest.approx(5e-4)


# -- limits


def curve(*rows: tuple[float, float]) -> dict[float, dict[str, float]]:
    """Of a dense time of 1, by share the sparse one."""
    return {share: {DENSE: 1.0, "csr": time, "ccnmm": time + 1} for share, time in rows}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param(curve((0.6, 2), (0.1, 1)), Limit(None), id="never"),
        pytest.param(curve((0.6, 1.5), (0.3, 0.75), (0.1, 0.25)), Limit(0.3, 0.1, 2.5), id="alpha"),
        pytest.param(curve((0.4, 0.8), (0.2, 0.5), (0.1, 0.49), (0.05, 0.48)), Limit(0.4, 0.2, 2.0), id="bound"),
        pytest.param(curve((0.4, 1.2), (0.2, 0.5), (0.1, 0.9)), Limit(0.2, 0.2, 2.5), id="disturbed"),
        pytest.param({0.4: {DENSE: 1, "csr": 0.8}, 0.2: {DENSE: 9, "csr": 0.8}}, Limit(0.4, 0.4, 2), id="dense too"),
        pytest.param({0.5: {DENSE: 1.0}}, Limit(None), id="no form"),
    ],
)
def test_limits_are_read_off_times(times: dict[float, dict[str, float]], expected: Limit) -> None:
    assert limit_of(times) == expected


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"""


def test_a_layer_is_measured_once_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, tuple[int, ...]]] = []

    def measured(module, forms, bottoms):  # type: ignore[no-untyped-def]
        weight = module.weight_blob()
        seen.append((round(float((weight != 0).double().mean()), 2), tuple(bottoms[0].shape)))
        return {DENSE: 1.0, "csr": 2 * seen[-1][0]}

    monkeypatch.setattr(limits, "measured", measured)
    net, path = load_net(NET, seed=1), tmp_path / "limits.json"
    assert limits.SHARES[-2:] == (0.02, 0.01)  # of 72 weights both are one
    before = net.params["conv"][0].detach().clone()
    found = LayerTimes(net, 1, Tell(), path).limit("conv")
    assert found == Limit(0.4, 0.02, pytest.approx(2, rel=0.1))
    assert seen == [(pytest.approx(share, abs=0.011), (1, 2, 6, 6)) for share in limits.SHARES]
    assert net.params["conv"][0].equal(before)
    assert LayerTimes(net, 1, Tell(), path).limit("conv") == found and len(seen) == len(limits.SHARES)
    # another batch is another time
    LayerTimes(net, 2, Tell(), path).limit("conv")
    assert len(seen) == 2 * len(limits.SHARES)
    # what isn't a curve counts for nothing
    path.write_text(json.dumps({key: {"x": 1} for key in json.loads(path.read_text())}))
    assert LayerTimes(net, 1, Tell(), path).limit("conv") == found


def test_what_no_sparse_form_runs_has_no_limit_but_a_time() -> None:
    times = LayerTimes(load_net(NET), 1, Tell())
    assert times.limit("ip") is None
    assert [*times.now("ip")] == [DENSE]


def test_the_rows_sum_up(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row("conv", 100, 0.2, 1.0, "csr", 0.5, "stopped", 0.3, 0.2),
        Row("ip", 300, 0.6, 2.0, "", None, "skipped"),
    ]
    table(rows).show()
    last = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in last.strip("│").split("│")][:6] == ["all", "400", "50.00%", "3", "2.5", "1.20x"]
    assert as_csv(rows).splitlines()[1:] == [
        "conv,100,0.2,1,csr,0.5,stopped,0.3,0.2",
        "ip,300,0.6,2,,,skipped,,",
    ]
