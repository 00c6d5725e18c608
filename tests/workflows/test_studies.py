"""forcereg.confusion, frontier and sweep: what their commands come to, told to an observer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.rules import ForkSvdRatio, MaxAccuracyDrop, MaxError, MaxMacs, RankConfig, Ranks
from forcereg.solver.loop import Solver
from forcereg.study.rule_names import named
from forcereg.system.events import Event
from forcereg.workflows.confusion import confusion
from forcereg.workflows.frontier import frontier
from forcereg.workflows.sweep import sweep
from tests.commands.conftest import Cli
from tests.solver.nets import IMAGES, Recorder, write_images, write_solver

SCHEDULE = "max_iter: 4 test_iter: 2 test_interval: 4 snapshot_after_train: true"
NET = "net_iter_4.caffemodel.h5"


class All(Recorder):
    """Progress, too."""

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def progress(self) -> list[tuple[str, int, int]]:
        return [(event.task, event.done, event.most) for event in self.of("progress")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a solver and the net that it trained; the working directory."""
    monkeypatch.chdir(write_images(tmp_path, IMAGES.replace("num_output: 4", "num_output: 8")))
    Solver(write_solver(tmp_path, f'{SCHEDULE} snapshot_prefix: "net"')).solve()
    write_solver(tmp_path, SCHEDULE)
    return tmp_path


# -- confusion


def test_confusion_is_the_command(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    told = All()
    found = confusion("net.prototxt", Path(NET), labels=["a", "b", "c"], observer=told)
    assert capsys.readouterr() == ("", "")
    assert told.progress() == [("batches", 0, 2), ("batches", 1, 2), ("batches", 2, 2)]
    assert (found.items.tolist(), found.records, found.titles) == ([4, 3, 3], 10, ["0 a", "1 b", "2 c"])
    found.write("own.csv")
    Path("names.txt").write_text("a\nb\nc\n")
    args = ("--model", "net.prototxt", "--weights", NET, "--labels", "names.txt")
    code, out, err = cli("confusion", *args, "-o", "theirs.csv")
    assert code == 0 and "all 10 records" in out, err
    assert Path("own.csv").read_text() == Path("theirs.csv").read_text()


def test_what_confusion_refuses(folder: Path) -> None:
    with pytest.raises(ForceregError, match=r"^labels: has 2 lines; expected one for each of 3 classes"):
        confusion("net.prototxt", NET, labels=["a", "b"])
    with pytest.raises(UsageError, match=r"expected a name that ends in .csv"):
        confusion("net.prototxt", NET).write("counts.txt")
    with pytest.warns(UserWarning, match="3 batches go round the 10 records"):
        confusion("net.prototxt", NET, iterations=3)


# -- frontier


def test_frontier_is_the_command(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    told = All()
    rules = [Ranks([2]), MaxMacs(0.01), MaxMacs(0.8)]
    found = frontier(NET, solver="solver.prototxt", rule=rules, finetune=2, latency="no", observer=told)
    assert capsys.readouterr() == ("", "") and not list(folder.glob("*.json"))
    assert [point.target for point in found.points] == ["whole", "ranks 2", "max-macs 0.8"] and found.runs == 6
    assert told.progress() == [("net", done, 3) for done in range(4)]
    assert told.of("progress")[-1].text.startswith("net_iter_4 pca max-macs 0.8: accuracy ")
    assert "max-macs 0.01: left out: a share of 0.01" in told.of("note")[0].text
    found.write("own.svg", by="forcereg")
    args = ("--solver", "solver.prototxt", "--ranks", "2", "--max-macs", "0.8", "--finetune", "2", "--latency", "no")
    code, _, err = cli("frontier", NET, *args, "-o", "theirs.svg")
    assert code == 0, err
    own, theirs = (Path(f"{name}.csv").read_text().splitlines() for name in ("own", "theirs"))
    assert own[1:] == theirs[1:] and own[0] == "# forcereg"


def test_rules_of_a_frontier(folder: Path) -> None:
    """Accuracies are of its solver; what a rule doesn't say for a method is left out."""
    told = All()
    rules = {"keep all": MaxAccuracyDrop(1), "fork": ForkSvdRatio(0.95)}
    options: dict[str, Any] = {"solver": "solver.prototxt", "latency": "no", "even_if_dearer": True}
    found = frontier([NET], rule=rules, method=["pca", "svd"], observer=told, **options)
    assert [(point.method, point.target) for point in found.points[1:]] == [
        ("pca", "keep all"), ("svd", "keep all"), ("svd", "fork"),
    ]  # fmt: skip
    assert any("pca, fork: left out: --fork-svd-ratio" in event.text for event in told.of("note"))
    with pytest.raises(UsageError, match="says layers and methods of its own"):
        frontier([NET], rule=RankConfig({"conv": 2}), **options)


# -- sweep


def test_sweep_is_the_command(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    told = All()
    sets = {"force_decay": [0, 0.01]}
    found = sweep("solver.prototxt", set=sets, rule=Ranks([2]), finetune=1, max_iter=2, out="own", observer=told)
    assert capsys.readouterr() == ("", "")
    assert [run.fields for run in found.results] == [{"force_decay": "0"}, {"force_decay": "0.01"}]
    assert not found.failed and found.plan.rule.words == "ranks 2" and found.picture.exists()
    assert [event.text for event in told.of("note")] == [
        "1 of 2: force_decay=0,seed=1", "2 of 2: force_decay=0.01,seed=1",
    ]  # fmt: skip
    args = ("--set", "force_decay=0,0.01", "--ranks", "2", "--finetune", "1", "--max-iter", "2")
    code, _, err = cli("sweep", "--solver", "solver.prototxt", *args, "--out", "theirs")
    assert code == 0, err
    rows = [
        [line.split(",")[:-2] for line in Path(name, "results.csv").read_text().splitlines()]
        for name in ("own", "theirs")
    ]
    assert rows[0] == rows[1]
    # the command knows what was done by the call
    code, _, err = cli("sweep", "--solver", "solver.prototxt", *args, "--out", "own")
    assert code == 0 and err.count(": done before") == 2


def test_what_a_sweep_was_cut_by(folder: Path) -> None:
    """Results are known by all that their cut depends on, --fc, too."""
    pytest.importorskip("matplotlib")
    options: dict[str, Any] = {"set": ["base_lr=0.1"], "max_iter": 1, "rule": MaxError(0.3), "even_if_dearer": True}
    found = sweep("solver.prototxt", **options).plan.rule
    assert found.key == {"error": "0.3", "even_if_dearer": "True", "method": "pca"}
    found = sweep("solver.prototxt", **options, fc=True, multiple=2, layers=["conv", "ip"]).plan.rule
    assert found.key == {
        "error": "0.3", "even_if_dearer": "True", "method": "pca", "fc": "True", "multiple": "2",
        "only_layers": "conv,ip",
    }  # fmt: skip
    with pytest.raises(UsageError, match="layers is a function"):
        sweep("solver.prototxt", **options, layers=lambda one: True)
    with pytest.raises(UsageError, match="--max-iter and --set max_iter are both given"):
        sweep("solver.prototxt", **{**options, "set": {"max_iter": [1, 2]}})


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        pytest.param(Ranks([10, (4, 16)]), "ranks 10,4-16", id="ranks"),
        pytest.param(MaxMacs(0.5), "max-macs 0.5", id="macs"),
        pytest.param(MaxMacs(0.5, choose="minmax"), "max-macs 0.5 minmax", id="minmax"),
        pytest.param(ForkSvdRatio(0.9), "fork-svd-ratio 0.9", id="fork"),
        pytest.param(MaxAccuracyDrop(1, solver="s"), "max-accuracy-drop 1", id="accuracy"),
        pytest.param(RankConfig({"conv": 8}), 'rank-config {"conv": 8}', id="config"),
    ],
)
def test_names_of_rules(rule: Any, name: str) -> None:
    assert named(rule) == name
