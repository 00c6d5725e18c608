"""`forcereg plot`: which curve goes where, and files that are what their names say."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from forcereg.errors import UsageError
from forcereg.report import picked
from forcereg.report.plot import Look, by_panel, chosen, draw, ends, figure, panel_of
from forcereg.report.points import Curve, Run
from forcereg.workflows.plot import levels, plot, range_of
from tests.conftest import RunCli
from tests.report.test_curves import CAFFE


@pytest.mark.parametrize(
    ("curve", "panel"),
    [
        ("train loss", "loss"),
        ("test #1 total loss", "loss"),
        ("test accuracy", "score"),
        ("test top-5", "score"),
        ("test rank", "score"),
        ("lr", "learning rate"),
        ("conv1 rank", "rank"),
        ("conv1 cosine", "cosine"),
        ("conv1 ratio", "force ratio"),
        ("conv1 block (1,4) sparsity", "sparsity"),
    ],
)
def test_panel_of(curve: str, panel: str) -> None:
    assert panel_of(curve) == panel


def test_sparsity_is_drawn_with_scores_on_an_axis_at_the_right() -> None:
    run = Run("r")
    for iteration in (0, 10):
        for name, value in (("conv1 row sparsity", 5.0 * iteration), ("conv1 column sparsity", 0.0)):
            run.add(name, iteration, value)
        run.add("test accuracy", iteration, 0.5 + 0.04 * iteration)
    assert chosen(run)["sparsity"] == ["conv1 row sparsity"]  # what a layer never has only fills the picture
    _, left, right = figure([run]).axes
    assert [line.get_label() for line in left.get_lines()] == ["conv1 row sparsity", "test accuracy (right)"]
    assert list(right.get_lines()[0].get_ydata()) == [0.5, 0.9] and left.get_ylabel() == "%"
    del run.curves["conv1 row sparsity"]
    assert chosen(run)["sparsity"] == ["conv1 column sparsity"]


def test_outputs_in_training_come_only_where_nothing_else_would() -> None:
    run = Run("r")
    for name in ("train loss", "train output loss", "train output accuracy", "lr"):
        run.add(name, 0, 1.0)
    assert chosen(run) == {"loss": ["train loss"], "score": ["train output accuracy"], "learning rate": ["lr"]}
    run.add("test accuracy", 0, 1.0)
    assert chosen(run)["score"] == ["test accuracy"]


LOG = "plain/train<1>.log"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with two logs of the same name in different folders."""
    for name in ("plain", "force"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train<1>.log").write_text(CAFFE)
    return tmp_path


def test_pictures_of_one_and_several_runs(logs: Path, run_cli: RunCli) -> None:
    both = ["plain/train<1>.log", "force/train<1>.log"]
    for files, out in ((both[:1], "one.png"), (both, "two.html"), (both, "two.svg")):
        done = run_cli("plot", *files, "-o", out, cwd=logs)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    with Image.open(logs / "one.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert ElementTree.parse(logs / "two.svg").getroot().tag.endswith("svg")
    html = (logs / "two.html").read_text()
    assert html.count('<img src="data:image/svg+xml;base64,') == 1
    assert "plain/train&lt;1&gt;.log" in html and ">test #1 accuracy</td>" in html


def test_a_picture_of_scores_alone(logs: Path, run_cli: RunCli) -> None:
    """As the paper's of fine-tuning: curves named, one panel, the whole net's accuracy as a line."""
    args = ("--only", "test accuracy", "--labels", "plain,from force", "--line", "whole net=0.99", "--y-range", "0,1")
    done = run_cli("plot", LOG, "force/train<1>.log", *args, "-o", "two.svg", "--x-range", "0,", cwd=logs)
    assert (done.returncode, done.stderr) == (0, "")
    text = (logs / "two.svg").read_text()
    for label in ("plain", "from force", "whole net", "test accuracy"):
        assert f"<!-- {label} -->" in text
    assert "loss" not in text
    done = run_cli("plot", LOG, "--only", "accur*", "-o", "one.csv", cwd=logs)
    assert (logs / "one.csv").read_text().splitlines()[1:] == ["train<1>,test,accuracy,0,0.0989"]


def test_levels_and_ranges_are_drawn() -> None:
    look = Look({"whole": 0.5, "0.75": 0.75}, (None, 3.0), (0.25, None))
    (axes,) = figure([with_curves("a", "test accuracy")], look).axes
    assert [line.get_label() for line in axes.lines] == ["test accuracy", "whole", "0.75"]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [0.5, 0.75]
    assert axes.get_xlim()[1] == 3 and axes.get_ylim()[0] == 0.25


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((), {}),
        (0.5, {"0.5": 0.5}),
        ([1, 0.5], {"1": 1.0, "0.5": 0.5}),
        ("a=b=0.5", {"a=b": 0.5}),
        (("whole=1", "2"), {"whole": 1.0, "2": 2.0}),
        ({"whole": 1}, {"whole": 1.0}),
    ],
)
def test_levels(given: Any, found: dict[str, float]) -> None:
    assert levels(given) == found


@pytest.mark.parametrize("given", [None, {"a": None}, [None], "1e308", "nan", float("inf")])
def test_no_levels(given: Any) -> None:
    with pytest.raises(UsageError, match=r"line is .*; expected a number"):
        levels(given)


def test_two_runs_have_two_names(logs: Path) -> None:
    with pytest.raises(UsageError, match="--labels is 'a,a'; expected 2 different names, one for each log"):
        plot([logs / LOG] * 2, logs / "x.svg", labels=["a", "a"])


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, (None, None)), ("0.9,", (0.9, None)), (" ,1", (None, 1.0)), ((0, None), (0.0, None)), ([1, 2], (1.0, 2.0))],
)
def test_ranges(given: Any, found: tuple[float | None, float | None]) -> None:
    assert range_of("x_range", given) == found


@pytest.mark.parametrize("given", ["1,2,3", "a,b", (1, 1), 5, ("nan", 1), (True, []), ("-1e308", "1e308")])
def test_no_ranges(given: Any) -> None:
    with pytest.raises(UsageError, match="x_range is"):
        range_of("x_range", given)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["accuracy"], ["test accuracy"]),
        (["conv*"], ["conv1 rank", "conv2 rank"]),
        (["train loss", "lr"], ["train loss", "lr"]),
        (["loss"], ["train loss", "test loss"]),
    ],
)
def test_only_some_curves(names: list[str], left: list[str]) -> None:
    run = with_curves("a", "train loss", "test loss", "test accuracy", "lr", "conv1 rank", "conv2 rank")
    assert list(picked.only([run, Run("b")], names)[0].curves) == left


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.integers(1, 30))
def test_a_smooth_curve_has_means(values: list[float], window: int) -> None:
    found = picked.smoothed(Curve(list(range(len(values))), values), window).values
    for place, value in enumerate(found):
        around = values[max(0, place - window // 2) : place + (window + 1) // 2]
        assert value == pytest.approx(sum(around) / len(around), abs=1e-6)
    if window == 1:
        assert found == values


def test_what_is_no_number_is_in_no_mean() -> None:
    found = picked.smoothed(Curve([0, 1, 2, 3], [1.0, math.inf, 3.0, math.nan]), 3).values
    assert found[:3] == [1.0, math.inf, 3.0] and math.isnan(found[3])


def drawn(runs: list[Run]) -> list[list[tuple[str, Any, str]]]:
    """Label, colour and line style of every entry of every panel's legend."""
    return [
        [(text.get_text(), line.get_color(), line.get_linestyle())
         for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)]
        for legend in (axes.get_legend() for axes in figure(runs).axes)
    ]  # fmt: skip


def with_curves(name: str, *curves: str) -> Run:
    run = Run(name)
    for curve in curves:
        for iteration in (0, 1):
            run.curves.setdefault(curve, Curve()).add(iteration, 1.0)
    return run


def test_every_curve_of_one_run_looks_different() -> None:
    """And is named beside the picture, where many names hide nothing."""
    names = [f"conv{number} rank" for number in range(36)]
    (panel,) = drawn([with_curves("r", *names)])
    assert [label for label, *_ in panel] == names
    assert len({look for _, *look in map(tuple, panel) for look in [tuple(look)]}) == len(names)
    axes = figure([with_curves("r", *names)]).axes[0]
    axes.figure.canvas.draw()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_a_style_is_a_curve_and_a_colour_a_run() -> None:
    runs = [with_curves("a", "test loss", "test #1 loss", "train loss"), with_curves("b", "train loss", "test loss")]
    (panel,) = drawn(runs)
    styles = {label: style for label, _, style in panel}
    assert styles["a: train loss"] == styles["b: train loss"] != styles["a: test loss"] == styles["b: test loss"]
    assert len({color for label, color, _ in panel if label.startswith("a")}) == 1
    assert len({color for _, color, _ in panel}) == 2


def test_runs_are_named_as_they_are() -> None:
    """A leading underscore would hide a curve from the legend, dollars would make it a formula."""
    runs = [with_curves(name, "lr") for name in ("_hidden", "a$b^$c", "long" * 40)]
    (panel,) = drawn(runs)
    labels = [label for label, *_ in panel]
    assert labels[0].strip() == "_hidden" and labels[1].replace("\\$", "$") == "a$b^$c" and len(labels[2]) <= 80
    (axes,) = figure(runs).axes
    assert axes.get_title() == "learning rate"
    # what all are stands once
    assert figure([with_curves(name, "test accuracy") for name in "ab"]).axes[0].get_title() == "test accuracy"
    assert drawn([with_curves("a", "lr", "train loss")] * 2)[1][0][0] == "a"
    assert drawn([with_curves("a", "test loss", "train loss")] * 2)[0][0][0] == "a: test loss"
    assert draw(runs, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "label"),
    [((1.0, math.nan, 2.0), "lr"), ((1.0, math.nan, math.inf), "lr (nan from 100)"), ((math.inf,), "lr (inf from 0)")],
)
def test_where_a_loss_left_the_numbers(values: tuple[float, ...], label: str) -> None:
    run = Run("r")
    for place, value in enumerate(values):
        run.add("lr", 100 * place, value)
    assert drawn([run])[0][0][0] == label


def test_the_page_gives_least_and_most_of_the_numbers() -> None:
    run = Run("r")
    for place, value in enumerate((math.nan, 3.0, 2.0, math.nan)):
        run.add("train loss", place, value)
    assert ends([run]).rows == [["r", "train loss", "3", "nan", "2", "3"]]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("plain/train<1>.log", "-o", "out.bmp"), 1, "out.bmp: expected a name that ends in .png, .svg, .pdf, .html"),
        (("none.log", "-o", "out.png"), 1, "none.log: cannot be read"),
        (("plain/train<1>.log",), 2, "Missing option '--out'"),
        (
            (LOG, "--line", "1", "-o", "out.svg"),
            2,
            "are for one panel, here are loss, score, learning rate; choose by --only",
        ),
        ((LOG, "--y-range", ",1", "-o", "out.svg"), 2, "--line and --y-range are for one panel"),
        (
            (LOG, "--only", "acuracy", "-o", "out.svg"),
            2,
            "names 'acuracy', which no log has; did you mean \"test accuracy\"?",
        ),
        ((LOG, "--only", "lr,,", "-o", "out.svg"), 2, "--only is 'lr,,'; expected names with commas"),
        ((LOG, "--labels", "a,b", "-o", "out.svg"), 2, "--labels is 'a,b'; expected 1 different names, one for"),
        ((LOG, "--only", "lr", "--line", "a=b", "-o", "out.svg"), 2, "--line is 'b'; expected a number"),
        ((LOG, "--x-range", "1", "-o", "out.svg"), 2, "--x-range is '1'; expected two numbers"),
        ((LOG, "--x-range", "2,1", "-o", "out.svg"), 2, "--x-range is '2,1'; expected the smaller number first"),
    ],
)
def test_errors(args: tuple[str, ...], code: int, says: str, logs: Path, run_cli: RunCli) -> None:
    done = run_cli("plot", *args, cwd=logs)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert not list(logs.glob("out.*"))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from forcereg.errors import ForceregError

    run = Run("r")
    run.add("lr", 0, 1.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ForceregError, match=r'pip install "forcereg\[plot\]"'):
        draw([run], "png")


@pytest.mark.parametrize("kind", ["svg", "html", "png"])
def test_names_of_any_characters(kind: str) -> None:
    names = ["\ud800", "\x1b[2J\n", "$\\frac{$", "_a", "\U0001f600漢", "<script>&amp;", "-->", "]]>", "x" * 1000]
    run = Run("\udcff\n")
    for name in names:
        for value in (math.inf, 3.4e38, -3.4e38, math.nan):
            run.add(f"test {name}", 2**31 - 1, value)
            run.add(f"test {name}", 0, value)
    picture = draw([run, run], kind)
    if kind != "png":
        text = picture.decode()
        assert "\x1b" not in text and "<script>" not in text
    if kind == "svg":
        ElementTree.fromstring(picture)


def test_each_panel_by_itself() -> None:
    one, two = Run("one"), Run("two")
    for run, names in ((one, ("train loss", "lr", "train output loss")), (two, ("test accuracy", "train output loss"))):
        for name in names:
            run.add(name, 0, 1.0)
    found = {panel: [(run.name, list(run.curves)) for run in runs] for panel, runs in by_panel([one, two]).items()}
    assert found == {
        "loss": [("one", ["train loss"]), ("two", ["train output loss"])],
        "score": [("two", ["test accuracy"])],
        "learning rate": [("one", ["lr"])],
    }


def test_a_legend_has_an_end() -> None:
    run = Run("r")
    for number in range(500):
        run.add(f"layer{number} rank", 0, number)
    (axes,) = figure([run]).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(texts) == 60 and texts[-1] == "and 441 more" and axes.figure.get_size_inches()[0] < 20
