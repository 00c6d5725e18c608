"""A sweep's results as a picture: what is read, which point is where."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forcereg
from forcereg.errors import ForceregError
from forcereg.report.rank_shares import GAP, Shares, apart, figure, is_results, read_shares
from forcereg.study.sweep_plan import Result
from forcereg.study.sweep_report import as_csv
from tests.conftest import RunCli


def result(decay: str, seed: int, accuracy: float | None, ranks: list[int], failed: str = "") -> Result:
    return Result(
        {"force_decay": decay}, seed, accuracy, ranks_at_error=ranks, full_ranks=[4, 8] if ranks else [],
        layers=["conv1", "block/2"] if ranks else [], failed=failed,
    )  # fmt: skip


RESULTS = [
    result("1", 1, 0.5, [1, 2]),
    result("0", 1, 0.8, [4, 8]),
    result("0", 2, 0.9, [3, 8]),
    result("2", 1, None, [], "diverged"),
    result("3", 1, None, [2, 2]),
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """As a sweep writes it."""
    path = tmp_path / "results.csv"
    path.write_text(as_csv(RESULTS))
    return path


def test_what_is_read(results: Path) -> None:
    """Runs that failed, and those of nets without an accuracy, are left out."""
    assert is_results(results)
    names = ("conv1", "block/2")
    assert read_shares(results) == [
        Shares("force_decay=1", 0.5, names, (0.25, 0.25)),
        Shares("force_decay=0", 0.8, names, (1.0, 1.0)),
        Shares("force_decay=0", 0.9, names, (0.75, 1.0)),
    ]


def test_a_file_without_names_numbers_its_layers(results: Path) -> None:
    results.write_text("# by hand\naccuracy,ranks_at_error,full_ranks\n\n0.5,1/2,4/8\n")
    assert read_shares(results) == [Shares("run 1", 0.5, ("layer 1", "layer 2"), (0.25, 0.25))]


def test_trials_are_settings(results: Path) -> None:
    """As tune writes them."""
    results.write_text("trial,accuracy,ranks_at_error,full_ranks\n0,0.5,1,4\n1,,,\n2,0.5,2,4\n")
    assert [run.setting for run in read_shares(results)] == ["trial 0", "trial 2"]


def test_points_are_means_by_error(results: Path) -> None:
    pytest.importorskip("matplotlib")
    (axes,) = figure(read_shares(results)).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert {name: [pytest.approx(point) for point in points] for name, points in curves.items()} == {
        "conv1": [[15, 87.5], [50, 25]],
        "block/2": [[15, 100], [50, 25]],
    }
    assert [text.get_text() for text in axes.texts] == ["force_decay=0", "force_decay=1"]


def test_many_layers_differ_by_shade() -> None:
    pytest.importorskip("matplotlib")
    names = tuple(f"conv{number}" for number in range(30))
    runs = [Shares(str(place), place / 10, names, (place / 10,) * 30) for place in (1, 2)]
    (axes,) = figure(runs).axes
    colours = {tuple(line.get_color()) for line in axes.lines if line.get_label() in names}
    assert len(colours) == 30 and len(axes.get_legend().get_texts()) == 30


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_names_have_room(places: list[float]) -> None:
    places.sort()
    found = apart(places)
    gap = min(GAP, 1 / max(1, len(places) - 1))
    assert all(second - first >= gap - 1e-9 for first, second in pairwise(found))
    assert found[0] >= -1e-9 and found[-1] <= 1 + 1e-9
    if all(second - first >= gap for first, second in pairwise(places)):
        assert found == places


def test_the_command_knows_results(results: Path, run_cli: RunCli) -> None:
    pytest.importorskip("matplotlib")
    done = run_cli("plot", "results.csv", "--y-range", "0,100", "-o", "x.svg", cwd=results.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote x.svg\n", "")
    text = (results.parent / "x.svg").read_text()
    assert "<!-- block/2 -->" in text and "<!-- force_decay=1 -->" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,1/9,4/8", r"results.csv:2: is no row of a sweep's results"),
        ("1.5,1/2,4/8", r"results.csv:2: is no row"),
        ("0.5,1,4/8", r"results.csv:2: is no row"),
        ("0.5,1/2,4/8,9", r"results.csv:2: is no row"),
        ('0.5,1/2,"4/8', r"results.csv:2: is no row"),
        (",,", "has no run with an accuracy and ranks yet"),
        ("0.5,1/2,4/8\n0.5,1,4", "its runs are of nets with different numbers of layers"),
    ],
)
def test_damaged_files(text: str, message: str, results: Path) -> None:
    results.write_text(f"accuracy,ranks_at_error,full_ranks\n{text}\n")
    with pytest.raises(ForceregError, match=message):
        forcereg.plot(results, results.with_name("x.svg"))


def test_what_is_for_logs_only(results: Path) -> None:
    for more in ({"only": "lr"}, {"labels": "a"}, {"smooth": 2}, {"line": 1}):
        with pytest.raises(ForceregError, match="a sweep's results are drawn alone, without --labels"):
            forcereg.plot(results, "x.svg", **more)  # type: ignore[arg-type]
    with pytest.raises(ForceregError, match=r"x.csv: a sweep's results are drawn as .png, .svg, .pdf"):
        forcereg.plot(results, "x.csv")
