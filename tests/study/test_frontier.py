"""Which nets a frontier makes, what it says of them, and its CSV, table and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Selection, prepare
from forcereg.lowrank.ranks import Whole, by_error, by_list, unless_dearer
from forcereg.net.load import load_net, net_shapes
from forcereg.report.plot import COLOURS
from forcereg.schema.text import parse_net
from forcereg.solver.trouble import NotFinite
from forcereg.study.accounting import accounts
from forcereg.study.evaluate import Evaluator
from forcereg.study.frontier import WHOLE, Aim, Point, Subject, Target, frontier, planned
from forcereg.study.frontier_report import (
    COLUMNS,
    TOP,
    as_csv,
    axes_of,
    best,
    figure,
    picture,
    relaxed,
    stretched,
    table,
    ticks,
)
from forcereg.study.scores import Evaluation, origin

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
"""


def subject(name: str = "a", method: str = "pca") -> Subject:
    file = parse_net(NET, "net.prototxt")
    params = load_net(NET, seed=1).params
    weights = {name: {at: blob.detach().numpy() for at, blob in enumerate(blobs)} for name, blobs in params.items()}
    prepared = prepare(file, weights, net_shapes(file), Selection(method))
    return Subject(name, method, prepared, weights, accounts(file).cost)


def ranks(text: str, *numbers: int) -> Target:
    return Target(text, lambda of: by_list(numbers)(of.prepared.candidates))


class Stub:
    """An Evaluator whose accuracies are given: of a net with the ranks r1/r2 (r1 + r2) / 100, of a whole one 1.

    `fails`: which fine-tuning, counted from 1, by `error`.
    """

    def __init__(self, fails: int = 0, error: Exception | None = None) -> None:
        self.fails, self.error = fails, error or NotFinite("loss is not finite at iteration 3")
        self.scored: list[dict[str, Any]] = []
        self.tuned: list[tuple[Any, ...]] = []

    def accuracy(self, prepared: Any, weights: Any) -> Any:
        def accuracy(choices: Mapping[str, Any]) -> float:
            self.scored.append(dict(choices))
            return sum(choices.values()) / 100 if choices else 1.0

        return accuracy

    def tested(self, prepared: Any, weights: Any) -> Any:
        return prepared

    def finetune(self, net: Any, weights: Any, iterations: int, folder: Path, test: Any, named: str) -> Any:
        self.tuned.append((iterations, folder, test, named))
        if len(self.tuned) == self.fails:
            raise self.error
        return Evaluation(0.5, 1.0), weights


def made(aims: list[Aim], stub: Stub, finetune: int = 0, **more: Any) -> list[Any]:
    return list(frontier(aims, cast(Evaluator, stub), finetune, Path("tuned"), **more))


# -- the plan


def test_each_net_is_whole_once_then_comes_every_method_and_target() -> None:
    subjects = [subject("a", "pca"), subject("a", "svd"), subject("b", "pca")]
    told: list[str] = []
    aims = planned(subjects, [ranks("two", 2, 2), ranks("more", 4, 4)], told.append)
    assert not told
    assert [(aim.subject.name, aim.subject.method, aim.target) for aim in aims] == [
        ("a", "pca", WHOLE), ("a", "pca", "two"), ("a", "pca", "more"), ("a", "svd", "two"), ("a", "svd", "more"),
        ("b", "pca", WHOLE), ("b", "pca", "two"), ("b", "pca", "more"),
    ]  # fmt: skip
    assert [aim.ranks for aim in aims[:3]] == [{}, {"conv1": 2, "conv2": 2}, {"conv1": 4, "conv2": 4}]


def test_what_a_target_leaves_whole_has_no_rank() -> None:
    target = Target("one", lambda of: {"conv1": Whole("as it is"), "conv2": 5})
    assert planned([subject()], [target], lambda text: None)[1].ranks == {"conv2": 4}  # a multiple of the groups


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        pytest.param(ranks("bad", 3), "1 ranks given; the net has 2 layers to decompose: conv1, conv2", id="count"),
        pytest.param(ranks("bad", 9, 2), "conv1: rank is 9; expected 1 to 8", id="beyond-full"),
        pytest.param(ranks("bad", 0, 2), "conv1: rank is 0; expected 1 to 8", id="none"),
        pytest.param(ranks("bad", 2, 5), "a net that is there already", id="rounded-to-the-same"),
        pytest.param(Target("bad", lambda of: {"conv1": Whole("")}), "it leaves the net whole", id="whole"),
        pytest.param(
            Target("bad", lambda of: unless_dearer(by_error(0.0))(of.prepared.candidates)),
            "no chain costs less than its layer; --even-if-dearer takes them",
            id="dearer",
        ),
        pytest.param(
            Target("bad", lambda of: by_error(2.0)(of.prepared.candidates)), "the error bound is 2", id="rule"
        ),
    ],
)
def test_a_target_that_cannot_be_met_is_told_and_left_out(target: Target, reason: str) -> None:
    told: list[str] = []
    aims = planned([subject()], [ranks("first", 2, 4), target, ranks("last", 3, 2)], told.append)
    assert [aim.target for aim in aims] == [WHOLE, "first", "last"]
    assert len(told) == 1 and told[0].startswith(f"a, pca, bad: left out: {reason}")


def test_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="every target was left out, so there is nothing to compare"):
        planned([subject()], [ranks("bad", 3)], lambda text: None)


# -- the nets


def test_points() -> None:
    one, stub = subject(), Stub()
    aims = planned([one], [ranks("low", 2, 4)], lambda text: None)
    whole, low = made(aims, stub)
    assert not stub.tuned and stub.scored == [{}, {"conv1": 2, "conv2": 4}]
    cost = accounts(parse_net(NET)).cost(parse_net(NET), {})
    assert cost.macs == (8 * 3 * 9) * 49 + (6 * 4 * 9) * 25
    assert whole.point == Point("a", "", WHOLE, {}, cost.macs, cost.params, 1.0)
    macs = (2 * 3 * 9 + 8 * 2) * 49 + (4 * 4 * 9 + 6 * 2) * 25
    assert low.point == Point("a", "pca", "low", {"conv1": 2, "conv2": 4}, macs, low.point.params, 0.06)
    assert low.weights["conv2_lowrank"][0].shape == (4, 4, 3, 3)
    assert [layer.name for layer in low.net.message.layer][-2:] == ["conv2_lowrank", "conv2_linear"]


def test_fine_tuning() -> None:
    one, stub = subject(), Stub()
    aims = planned([one], [ranks("low", 2, 4)], lambda text: None)
    assert [net.point.tuned for net in made(aims, stub, 7)] == [0.5, 0.5]
    named = [origin(one.prepared, aim.ranks) for aim in aims]
    assert stub.tuned == [(7, Path("tuned"), None, name) for name in named]


def test_fine_tuning_that_fails_is_told_and_the_others_go_on() -> None:
    one = subject()
    aims = planned([one], [ranks("bad", 2, 4), ranks("good", 4, 4)], lambda text: None)
    told: list[str] = []
    stub = Stub(fails=2)
    assert [net.point.tuned for net in made(aims, stub, 7, tell=told.append)] == [0.5, None, 0.5]
    assert told == ["a, pca, bad: fine-tuning failed: loss is not finite at iteration 3"]


def test_a_full_disk_ends_it() -> None:
    aims = planned([subject()], [ranks("first", 2, 4)], lambda text: None)
    full = ForceregError("cannot write tuned/tune.log: no space left on device")
    with pytest.raises(ForceregError, match="no space left"):
        made(aims, Stub(fails=1, error=full), 7)


# -- CSV and table

POINTS = [
    Point("no, force", "", WHOLE, {}, 2_000_000, 900, 0.99, 0.9912345678, 4.0),
    Point("no, force", "pca", "max-macs 0.5", {"a/1x1": 3, "b": 4}, 1_000_000, 500, 0.5, 0.98, 2.5),
    Point("no, force", "vh", "ranks 3,4", {"b": 4}, 500_000, 400, 0.25, None, None),
]


def test_csv() -> None:
    text = as_csv(POINTS, ["forcereg frontier a.h5", "versions"])
    head = text.splitlines()[:2]
    assert head == ["# forcereg frontier a.h5", "# versions"]
    rows = list(csv.DictReader(io.StringIO(text.split("\n", 2)[2])))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["net"] == "no, force" and rows[0]["accuracy_tuned"] == "0.991235"
    assert rows[1] == {
        "net": "no, force", "method": "pca", "target": "max-macs 0.5", "ranks": "a/1x1=3 b=4", "macs": "1000000",
        "params": "500", "accuracy": "0.5", "accuracy_tuned": "0.98", "milliseconds": "2.5",
    }  # fmt: skip
    assert (rows[2]["target"], rows[2]["accuracy_tuned"], rows[2]["milliseconds"]) == ("ranks 3,4", "", "")


@pytest.mark.parametrize("finetune", [0, 30])
def test_table(capsys: pytest.CaptureFixture[str], finetune: int) -> None:
    table(POINTS, finetune).show()
    lines = capsys.readouterr().out.splitlines()
    assert ("fine-tuned for 30" in lines[1]) == bool(finetune)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert rows[1] == ["no, force", "pca", "max-macs 0.5", "a/1x1 3 b 4", "1", "500", "2.5", "50.00%"] + (
        ["98.00%"] if finetune else []
    )
    assert rows[2][6:] == ["-", "25.00%"] + ["-"] * bool(finetune)


# -- picture


def points(nets: int, methods: tuple[str, ...], timed: bool = True, tuned: bool = True) -> list[Point]:
    """Whole nets and two decompositions by each method, better by higher cost."""
    found = []
    for net in range(nets):
        for method, target, share, accuracy in [
            ("", WHOLE, 1.0, 0.99),
            *((method, f"max-macs {share}", share, 0.9 + share / 10) for method in methods for share in (0.2, 0.6)),
        ]:
            own = (int(2e6 * share), 1000, accuracy - net / 50)
            time = 10 * share if timed else None
            found.append(Point(f"net {net}", method, target, {}, *own, accuracy if tuned else None, time))
    return found


@pytest.mark.parametrize(
    ("methods", "timed", "shape", "titles"),
    [
        pytest.param(("pca",), False, (1, 1), ["pca"], id="one"),
        pytest.param(("pca",), True, (1, 2), ["pca", "pca"], id="one-timed"),
        pytest.param(("pca", "vh"), True, (2, 2), ["pca", "vh"] * 2, id="two-timed"),
        pytest.param(("a", "b", "c", "d"), False, (2, 2), ["a", "b", "c", "d"], id="four"),
        pytest.param(("a", "b", "c", "d", "e"), True, (4, 3), ["a", "b", "c", "d", "e", ""] * 2, id="five-timed"),
    ],
)
def test_panels(methods: tuple[str, ...], timed: bool, shape: tuple[int, int], titles: list[str]) -> None:
    pytest.importorskip("matplotlib")
    made = figure(points(3, methods, timed), "batch 32 on cpu")
    grid = made.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert [axes.get_title() for axes in made.axes] == titles
    labels = {axes.get_xlabel() for axes in made.axes if axes.get_title()}
    assert labels == {"million multiply-accumulates an image"} | ({"milliseconds, batch 32 on cpu"} if timed else set())
    limits = {(axes.get_xlabel(), axes.get_xlim(), axes.get_ylim()) for axes in made.axes if axes.get_title()}
    assert len(limits) == len(labels)  # methods can be compared by eye
    nets, marks = ([text.get_text() for text in legend.get_texts()] for legend in made.legends)
    assert nets == ["net 0", "net 1", "net 2"] and marks == ["as decomposed", "fine-tuned", "whole net"]


def test_the_pictures_points_are_those_of_the_csv() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = figure(points(2, ("pca",), timed=False)).axes
    drawn: dict[tuple[str, str, str], set[tuple[float, float]]] = {}
    for line in axes.lines:
        look = (str(line.get_color()), str(line.get_fillstyle()), str(line.get_marker()))
        drawn.setdefault(look, set()).update((round(x, 3), round(y, 3)) for x, y in zip(*line.get_data(), strict=True))
    assert drawn[COLOURS[1], "none", "*"] == {(2.0, 0.97)} and drawn[COLOURS[1], "full", "*"] == {(2.0, 0.99)}
    assert drawn[COLOURS[0], "none", "o"] == drawn[COLOURS[0], "none", ""] == {(0.4, 0.92), (1.2, 0.96)}
    assert drawn[COLOURS[1], "none", "o"] == {(0.4, 0.9), (1.2, 0.94)}
    assert drawn[COLOURS[1], "full", "o"] == drawn[COLOURS[1], "full", ""] == {(0.4, 0.92), (1.2, 0.96)}


def test_nothing_fine_tuned_is_shown_where_nothing_was() -> None:
    pytest.importorskip("matplotlib")
    made = figure(points(12, ("pca",), tuned=False))
    assert [text.get_text() for text in made.legends[1].get_texts()] == ["as decomposed", "whole net"]
    looks = {(line.get_color(), line.get_marker()) for line in made.axes[0].lines if line.get_marker() not in ("", "*")}
    assert len(looks) == 12  # every net has its own
    assert b"<svg" in picture(points(1, ("pca",)), "svg")


@pytest.mark.parametrize("accuracies", [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.5, 0.99999), (0.56, 0.561)])
def test_any_accuracies_have_a_scale(accuracies: tuple[float, float]) -> None:
    pytest.importorskip("matplotlib")
    whole, cut = accuracies
    own = [Point("n", "", WHOLE, {}, 10, 5, whole), Point("n", "pca", "error 0.1", {}, 5, 3, cut)]
    (axes,) = figure(own).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) >= 3 and all(label.endswith("%") for label in labels)


def test_costs_that_are_known() -> None:
    known = Point("n", "pca", "error 0.1", {}, 10, 5, 0.5, None, 1.0)
    unknown = Point("n", "pca", "error 0.2", {}, None, 5, 0.5)
    assert list(axes_of([known], "")) == ["macs", "milliseconds"]
    assert list(axes_of([known, unknown], "")) == ["params"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_best_at_every_cost(pairs: list[tuple[float, float]]) -> None:
    front = best(pairs)
    assert set(front) <= set(pairs)
    costs, accuracies = [pair[0] for pair in front], [pair[1] for pair in front]
    assert costs == sorted(set(costs)) and accuracies == sorted(set(accuracies))
    for cost, accuracy in pairs:
        assert max(pair[1] for pair in front if pair[0] <= cost) >= accuracy


@given(st.floats(0, 0.9), st.floats(0.002, 0.1))
def test_ticks_lie_apart_within_the_bounds(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert len(found) >= 2 and low <= found[0] and found[-1] <= high
    places = stretched(found)
    assert np.diff(places).min() > 0.07 * (stretched(high) - stretched(low))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        pytest.param((0.0, 0.985), [0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98], id="wide"),
        pytest.param((0.55, 0.985), [0.6, 0.7, 0.8, 0.9, 0.95, 0.98], id="half"),
        pytest.param((0.965, 0.995), [0.97, 0.98, 0.99, 0.995], id="high"),
    ],
)
def test_ticks_are_round(bounds: tuple[float, float], expected: list[float]) -> None:
    assert ticks(*bounds) == expected


@given(st.floats(0, 1 - 2 * TOP))
def test_the_scale_and_back(accuracy: float) -> None:
    assert relaxed(stretched(accuracy)) == pytest.approx(accuracy, abs=1e-12)
