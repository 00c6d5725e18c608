"""`forcereg sweep`: the grid, its runs, what they leave, and going on."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.commands.sweep import command
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.ranks import by_list
from forcereg.schema import Datum
from forcereg.schema.text import parse_solver, read_solver
from forcereg.solver.trouble import NotFinite
from forcereg.study.evaluate import Evaluator
from forcereg.study.grid import alternatives, grid, labels
from forcereg.study.sweep import sweep
from forcereg.study.sweep_plan import Cut, Plan, Result
from forcereg.study.sweep_report import as_csv, by_setting, picture, ranks_of, spread, table
from tests.conftest import RunCli
from tests.data.lmdbs import put_lmdb
from tests.solver.nets import CLASSES, IMAGES, image_records, write_images, write_solver

SCHEDULE = "max_iter: 6 test_iter: 2 test_interval: 3 display: 2 weight_decay: 0.001"


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("force_decay=0,1e-4", "force_decay", ["0", "1e-4"]),
        ("stepvalue=[5000,7000],[6000]", "stepvalue", ["[5000,7000]", "[6000]"]),
        ('train_state={stage: "a,b"}, {}', "train_state", ['{stage: "a,b"}', "{}"]),
        ("net='a,b'", "net", ["'a,b'"]),
    ],
)
def test_alternatives(text: str, name: str, values: list[str]) -> None:
    assert alternatives(text) == (name, values)


@pytest.mark.parametrize("text", ["", "force_decay", "=1", "force_decay=", "force_decay=1,,2"])
def test_no_alternatives(text: str) -> None:
    with pytest.raises(UsageError, match="expected FIELD=VALUE,VALUE"):
        alternatives(text)


@pytest.mark.parametrize("field", ["random_seed", "snapshot_prefix"])
def test_fields_that_a_sweep_sets_itself(field: str) -> None:
    with pytest.raises(UsageError, match=f"a sweep sets {field} itself; use --"):
        alternatives(f"{field}=1,2")


@pytest.mark.parametrize(
    "text",
    [
        'train_state={stage: "a b"},{stage: "a_b"}',
        "net=a/b,a_b",
        "stepvalue=[3,5],[35]",
        f"net={'x' * 400},{'x' * 401}",
        "train_net='a',\"a\"",
    ],
    ids=["stages", "paths", "lists", "long", "quotes"],
)
def test_every_setting_has_a_folder_of_its_own(text: str) -> None:
    folders = [setting.folder for setting in grid([text], 1)]
    assert len(set(folders)) == 2
    assert all(len(folder) < 200 and not set(folder) & set("/ \"'{}[]:*?") for folder in folders)


def test_grid() -> None:
    settings = grid(["force_decay=0,0.1", "force_type=Constant,Linear", "base_lr=1,2"], 2)
    # without force the type says nothing: 2 rates; with it 2 types x 2 rates; each with 2 seeds
    assert len(settings) == 2 * (2 + 4)
    assert settings[0].folder == "force_decay=0,base_lr=1,seed=1"
    assert len({setting.folder for setting in settings}) == len(settings)
    with pytest.raises(UsageError, match="names a field twice"):
        grid(["base_lr=1", "base_lr=2"], 1)


def named(*settings: dict[str, str]) -> list[str]:
    return labels(settings)


def test_labels_tell_what_varies() -> None:
    settings = [setting.fields for setting in grid(["force_decay=0,1,2", "force_type=Constant", "base_lr=5"], 1)]
    assert named(*settings) == ["force_decay=0", "force_decay=1", "force_decay=2"]
    assert named({"a": "1", "b": "2"}) == ["a=1 b=2"] and named({}) == ["as it is"]
    assert named({"a": "0"}, {"a": "0", "b": "1"}) == ["a=0", "a=0 b=1"]  # nothing else tells them apart
    assert named({"a": "1", "b": "1"}, {"b": "1", "a": "1"}) == ["a=1 b=1"] * 2


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("123")), min_size=1, max_size=8))
def test_every_setting_has_a_label_of_its_own(settings: list[dict[str, str]]) -> None:
    found = labels(settings)
    assert all((one == other) == (a == b) for one, a in zip(found, settings, strict=True)
               for other, b in zip(found, settings, strict=True))  # fmt: skip


def result(decay: str, seed: int, accuracy: float) -> Result:
    done = (0.875, [2, 3], [4, 8], ["whole", "3"], 1000, 500, 0.25, None, 1.5, "", ["a/1", "b"])
    return Result({"force_decay": decay, "base_lr": "1"}, seed, accuracy, 0.5, *done)  # type: ignore[arg-type]


FAILED = Result({"force_decay": "1", "base_lr": "1"}, 2, macs=1000, failed="diverged")


def plan_of(error: float, finetune: int, cut: Cut | None = None) -> Plan:
    return Plan(parse_solver(""), (), error, finetune, {}, cut)


def test_report() -> None:
    results = [result("0", 1, 0.5), result("0", 2, 0.75), result("1", 1, 1.0)]
    assert list(by_setting(results)) == ["force_decay=0", "force_decay=1"]
    assert as_csv(results).splitlines()[:2] == [
        "setting,force_decay,base_lr,seed,accuracy,loss,accuracy_whole_tuned,layers,ranks_at_error,full_ranks,ranks,macs,"
        "macs_cut,accuracy_cut,accuracy_tuned,seconds,failed",
        "force_decay=0,0,1,1,0.5,0.5,0.875,a/1 b,2/3,4/8,whole/3,1000,500,0.25,,1.5,",
    ]
    assert spread([0.5, 0.75], ".1%") == "62.5% (50.0% to 75.0%)"
    assert (spread([1.0, 1.0], "g"), spread([None], "g")) == ("1", "-")


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        pytest.param([[2, 3], [2, 5]], "2 / 4 (3 to 5)", id="cut"),
        pytest.param([["whole", "3"]], "whole / 3", id="whole"),
        pytest.param([["whole", "3"], ["4", "3"]], "4 or whole / 3", id="some-whole"),
        pytest.param([["4-3"], ["4-2"], ["4-3"]], "4-3 or 4-2", id="pairs"),
        pytest.param([[], ["4"]], "4", id="failed"),
        pytest.param([[]], "-", id="none"),
    ],
)
def test_ranks_of_layers_that_may_stay_whole(lists: list[list[int | str]], told: str) -> None:
    assert ranks_of(lists) == told


def test_report_of_runs_that_failed() -> None:
    results = [result("0", 1, 0.5), result("1", 1, 1.0), FAILED]
    assert as_csv(results).splitlines()[-1] == "force_decay=1,1,1,2,,,,,,,,1000,,,,0,diverged"
    found = table(results, plan_of(0.005, 0)).columns
    headings = ["setting", "whole net", "ranks at 0.5% error", "ranks cut to", "million MACs", "cut"]
    assert [column.heading for column in found] == headings
    assert [column.cells for column in found[:2]] == [
        [["force_decay=0"], ["force_decay=1, 1 of 2 failed"]],
        [["50.00%"], ["100.00%"]],
    ]
    assert table([FAILED], plan_of(0.05, 9)).columns[3].cells == [["-"]]
    assert picture([FAILED, *results], plan_of(0.05, 0), "png").startswith(b"\x89PNG")


def test_the_whole_net_stands_beside_the_cut_one() -> None:
    run = replace(result("0", 1, 0.5), accuracy_tuned=0.75)
    found = {column.heading: column.cells for column in table([run], plan_of(0.05, 300)).columns}
    assert found["whole net"] == [["50.00%"]] and found["whole net fine-tuned for 300"] == [["87.50%"]]
    assert found["cut"] == [["25.00%"]] and found["cut and fine-tuned for 300"] == [["75.00%"]]
    same = replace(run, ranks=["2", "3"])
    assert "ranks cut to" not in {column.heading for column in table([same], plan_of(0.05, 300)).columns}


def test_a_picture_of_many_settings_tells_them_apart() -> None:
    svg = picture([result(str(number), 1, 0.5) for number in range(12)], plan_of(0.05, 0), "svg").decode()
    assert all(f"force_decay={number}" in svg for number in (0, 10, 11)) and "base_lr" not in svg
    looks = {
        piece.split("</g>")[0].split("<use ")[1].split("x=")[0] + piece.split('style="')[-1].split('"')[0]
        for piece in svg.split('<g id="legend_1">')[1].split('<g id="line2d_')[1:]
    }
    assert len(looks) == 13  # and whole nets


def test_a_sweep_and_going_on(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "work").mkdir()
    write_solver(write_images(tmp_path), SCHEDULE)
    asked = ("--set", "force_decay=0,0.01", "--set", "force_type=Constant", "--finetune", "2", "--error", "0.1")
    args = ("sweep", "--solver", "../solver.prototxt", *asked)
    done = run_cli(*args, cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "work" / "sweep"
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["force_decay"], row["force_type"], row["seed"]) for row in rows] == [
        ("0", "", "1"),
        ("0.01", "Constant", "1"),
    ]
    for row in rows:
        assert 1 <= int(row["ranks_at_error"]) <= 4 == int(row["full_ranks"]) and row["layers"] == "conv"
        names = ("accuracy", "accuracy_whole_tuned", "accuracy_cut", "accuracy_tuned")
        assert all(0 <= float(row[name]) <= 1 for name in names)
        assert row["setting"] == f"force_decay={row['force_decay']}" and row["ranks"] in (
            row["ranks_at_error"],
            "whole",
        )
        assert int(row["macs"]) == 4 * 9 * 16 + 64 * 3
    assert (
        " force_decay=0.01 " in done.stdout
        and "force_type" not in done.stdout
        and (out / "sweep.svg").stat().st_size > 1000
    )
    logs = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.log"))
    assert logs == sorted(f"{folder}/{log}.log" for folder in _folders(out) for log in ("train", "tune"))

    # one run is lost, half of it: it goes on from its snapshot, the other isn't done again
    first, second = _folders(out)
    (out / second / "result.json").unlink()
    before = json.loads((out / first / "result.json").read_text())
    again = run_cli(*args, cwd=tmp_path / "work")
    assert again.returncode == 0 and f"{first}: done before" in again.stderr and f"{second}: done" not in again.stderr
    assert json.loads((out / first / "result.json").read_text()) == before
    with open(out / "results.csv", newline="") as file:
        same = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    assert same == [{**row, "seconds": ""} for row in rows]


def _folders(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_dir())


def test_a_solver_without_a_test(tmp_path: Path, run_cli: RunCli) -> None:
    write_solver(write_images(tmp_path), "max_iter: 1")
    done = run_cli("sweep", "--solver", "solver.prototxt", "--set", "base_lr=1", cwd=tmp_path)
    assert done.returncode == 1 and "has no test net, so runs can't be compared" in done.stderr


def test_a_shell_completes_its_files() -> None:
    kinds = {param.name: param.type for param in command.params}
    assert all(isinstance(kinds[name], click.Path) for name in ("solver", "weights", "out"))


EXACT = Cut("ranks 4", {"ranks": "4"}, lambda trained: by_list([4])(trained.prepared.candidates))
"""A chain that is its layer."""


def swept(
    root: Path,
    sets: str,
    error: float = 0.0,
    finetune: int = 0,
    weights: tuple[Path, ...] = (),
    out: str = "out",
    cut: Cut | None = None,
) -> tuple[list[Result], str]:
    """A sweep over `root`/solver.prototxt, here: its results, and what it told."""
    told: list[str] = []
    plan = Plan(read_solver(root / "solver.prototxt"), weights, error, finetune, {"device": "cpu"}, cut)
    results = list(sweep(plan, grid([sets], 1), root / out, told.append))
    return results, "\n".join(told)


def mislabel(root: Path) -> None:
    """Gives the second half of the test images wrong labels."""
    records = [(key, Datum.FromString(value)) for key, value in image_records(10)]
    for _, datum in records[5:]:
        datum.label = (datum.label + 1) % CLASSES
    put_lmdb(root / "test_lmdb", [(key, datum.SerializeToString()) for key, datum in records])


def test_a_run_that_fails_does_not_end_the_others(tmp_path: Path, run_cli: RunCli) -> None:
    write_solver(write_images(tmp_path), SCHEDULE)
    done = run_cli("sweep", "--solver", "solver.prototxt", "--set", "base_lr=0.1,1e10,0.2", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.endswith("1 of 3 runs failed; sweep/results.csv says why\n")
    with open(tmp_path / "sweep/results.csv", newline="") as file:
        rows = {row["base_lr"]: row for row in csv.DictReader(file)}
    assert "the loss is not finite at iteration" in rows["1e10"]["failed"] and rows["1e10"]["accuracy"] == ""
    assert all(rows[rate]["accuracy"] and not rows[rate]["failed"] for rate in ("0.1", "0.2"))
    assert "base_lr=1e10, 1 of 1 failed" in done.stdout
    _, told = swept(tmp_path, "base_lr=0.1,1e10,0.2,0.3", error=0.05, out="sweep")
    assert told.count("done before") == 2 and told.count("failed: ") == 1


@pytest.mark.parametrize("sets", ["base_lr=0.1,abc", "force_type=Constant,Bogus", "net=net.prototxt,none.prototxt"])
def test_every_setting_is_looked_at_before_one_runs(sets: str, tmp_path: Path) -> None:
    write_solver(write_images(tmp_path), SCHEDULE)
    with pytest.raises(ForceregError, match=r"abc|Bogus|none\.prototxt"):
        swept(tmp_path, sets)
    assert not (tmp_path / "out").exists()


def test_what_was_run_otherwise_is_not_taken_for_this_run(tmp_path: Path) -> None:
    write_solver(write_images(tmp_path), SCHEDULE)
    swept(tmp_path, "force_decay=0.01")
    model = next((tmp_path / "out").rglob("net_iter_6.caffemodel.h5"))
    with pytest.raises(ForceregError, match="holds a run with other weights; give another --out"):
        swept(tmp_path, "force_decay=0.01", weights=(model,))
    write_solver(tmp_path, SCHEDULE.replace("max_iter: 6", "max_iter: 8"))
    with pytest.raises(ForceregError, match=r"other solver \(max_iter: 6; now max_iter: 8\)"):
        swept(tmp_path, "force_decay=0.01")
    write_solver(tmp_path, SCHEDULE)
    (tmp_path / "net.prototxt").write_text(IMAGES.replace("dropout_ratio: 0.3", "dropout_ratio: 0.4"))
    with pytest.raises(ForceregError, match="holds a run with other net"):
        swept(tmp_path, "force_decay=0.01")


def test_what_a_sweep_did_not_write_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """A result in another form is none, and done again; a run in another form is told."""
    write_solver(write_images(tmp_path), SCHEDULE)
    first, _ = swept(tmp_path, "force_decay=0.01")
    (folder,) = (tmp_path / "out").iterdir()
    ours = json.loads((folder / "result.json").read_text())
    for made in (
        [],
        {},
        {**ours, "result": {**ours["result"], "sed": 1}},
        {**ours, "result": {**ours["result"], "ranks_at_error": ["a"]}},
        {**ours, "result": {**ours["result"], "seed": 2}},
        {**ours, "result": {**ours["result"], "fields": {"force_decay": "0.02"}}},
    ):
        (folder / "result.json").write_text(json.dumps(made))
        again, told = swept(tmp_path, "force_decay=0.01")
        assert "done before" not in told and again[0].ranks == first[0].ranks
        assert json.loads((folder / "result.json").read_text()).keys() == ours.keys()
    for text in ("{}", "[]", "{", '{"solver": 1, "net": [], "weights": []}', "[" * 100_000, "9" * 5000):
        (folder / "run.json").write_text(text)
        with pytest.raises(
            ForceregError, match=r"run\.json: can't be read as what a sweep wrote .*; give another --out"
        ):
            swept(tmp_path, "force_decay=0.01")


def test_another_cut_and_another_length_of_fine_tuning(tmp_path: Path) -> None:
    """They go on from the trained net, not from what was fine-tuned before: the same as in a new folder."""
    write_solver(write_images(tmp_path), SCHEDULE)
    swept(tmp_path, "base_lr=0.1", error=0.0, finetune=3)
    for error, finetune in ((0.0, 1), (0.6, 3), (0.6, 0)):
        found = [
            swept(tmp_path, "base_lr=0.1", error, finetune, out=out)[0][0] for out in ("out", f"{error}{finetune}")
        ]
        # at rank 4 of 4 a chain is dearer than its layer
        assert (found[0].ranks, found[0].ranks_at_error) == ((["whole"], [4]) if error == 0 else (["1"], [1]))
        first, second = ({**vars(one), "seconds": 0} for one in found)
        assert first == second
    logs = [path.read_text() for path in (tmp_path / "out").rglob("t*.log")]
    assert len(logs) == 2 and sum("Restoring" in log for log in logs) == 1  # the trained net was there each time


def test_scores_are_of_the_same_records(tmp_path: Path) -> None:
    """A test of half of the records, the second half of which has wrong labels."""
    write_images(tmp_path)
    mislabel(tmp_path)
    lines = IMAGES.replace("dropout_ratio: 0.3", "dropout_ratio: 0.0")
    (tmp_path / "net.prototxt").write_text(lines)
    write_solver(tmp_path, SCHEDULE.replace("test_iter: 2", "test_iter: 1").replace("max_iter: 6", "max_iter: 60"))
    results, _ = swept(tmp_path, "base_lr=0.05", finetune=1, cut=EXACT)
    assert results[0].ranks == ["4"]
    assert [results[0].accuracy, results[0].accuracy_cut, results[0].accuracy_tuned] == [1.0, 1.0, 1.0]


def _separate(root: Path) -> str:
    """Training and test net in files of their own; the training net's data would be tested on if they were mixed up."""
    (root / "test.prototxt").write_text(IMAGES)
    data, *layers = (part for part in IMAGES.split("\nlayer {\n") if "test_lmdb" not in part)
    text = "\nlayer {\n".join([data, *layers]).replace("include { phase: TRAIN }", "")
    (root / "train.prototxt").write_text(text.replace("include { phase: TEST }", ""))
    return 'train_net: "train.prototxt" test_net: "test.prototxt"'


def _inline(root: Path) -> str:
    source = IMAGES.replace("train_lmdb", str(root / "train_lmdb")).replace("test_lmdb", str(root / "test_lmdb"))
    return f"net_param {{ {source} }}"


def _staged(root: Path) -> str:
    """Two test nets; the first is on the test data."""
    staged = IMAGES.replace("include { phase: TEST }", 'include { phase: TEST stage: "a" }', 1)
    other = staged.split("layer {")[1].replace("phase: TRAIN", 'phase: TEST stage: "b"')
    (root / "net.prototxt").write_text(staged.replace("layer {", f"layer {{{other}layer {{", 1))
    return 'net: "net.prototxt" test_state { stage: "a" } test_state { stage: "b" } test_iter: 2'


@pytest.mark.parametrize("write_net", [_separate, _inline, _staged], ids=["train_net-test_net", "net_param", "stages"])
def test_the_cut_net_is_tested_as_the_trained_one(write_net: Callable[[Path], str], tmp_path: Path) -> None:
    write_images(tmp_path)
    mislabel(tmp_path)
    write_solver(tmp_path, SCHEDULE.replace("max_iter: 6", "max_iter: 60"), net=write_net(tmp_path))
    results, _ = swept(tmp_path, "base_lr=0.05", finetune=2, cut=EXACT)
    accuracy = results[0].accuracy
    assert accuracy == 0.5  # on the training data it is 1
    assert results[0].accuracy_cut == accuracy and results[0].accuracy_tuned is not None


def test_the_solver_is_beside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path from the solver's folder to the cut net leads there from the working directory too."""
    for name in ("net", "work"):
        (tmp_path / name).mkdir()
    write_solver(write_images(tmp_path / "net"), SCHEDULE)
    monkeypatch.chdir(tmp_path / "work")
    plan = Plan(read_solver("../net/solver.prototxt"), (), 0.1, 1)
    assert [result.failed for result in sweep(plan, grid(["base_lr=0.1"], 1), Path("out"), print)] == [""]


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_both_snapshot_formats(form: str, tmp_path: Path) -> None:
    write_solver(write_images(tmp_path), f"{SCHEDULE} snapshot_format: {form}")
    results, _ = swept(tmp_path, "base_lr=0.1", finetune=1, cut=EXACT)
    ending = ".h5" if form == "HDF5" else ""
    names = sorted(path.name for path in (tmp_path / "out").rglob("*iter*"))
    assert names[:2] == [f"net_iter_6.caffemodel{ending}", f"net_iter_6.solverstate{ending}"]
    tuned = [f"1.caffemodel{ending}", f"1.solverstate{ending}"] * 2  # whole and cut
    assert [name.split("_iter_")[1] for name in names[2:]] == tuned
    assert results[0].accuracy_cut == results[0].accuracy


def test_warnings_are_told_once_and_weights_in_the_log(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES.replace("force_mult: 1", ""))
    write_solver(tmp_path, SCHEDULE)
    _, told = swept(tmp_path, "force_decay=0.1,0.2,0")
    assert told.count("NOTHING IS REGULARIZED") == 2  # the value differs
    model = next((tmp_path / "out").rglob("net_iter_6.caffemodel.h5"))
    _, told = swept(tmp_path, "base_lr=0.1,0.2", weights=(model,), out="again")
    logs = [path.read_text() for path in (tmp_path / "again").rglob("train.log")]
    assert len(logs) == 2 and all("Loaded layers: conv, bn, scale, ip" in log for log in logs)
    with pytest.raises(UsageError, match="--weights and --set weights are both given"):
        swept(tmp_path, f"weights={model}", weights=(model,))


def test_the_last_top_1_accuracy_counts(tmp_path: Path) -> None:
    """As in GoogLeNet: an auxiliary classifier's comes before, a top-5 behind it."""
    layer = next(line for line in IMAGES.splitlines() if '"Accuracy"' in line)
    aux = layer.replace('"accuracy"', '"aux"').replace('bottom: "ip"', 'bottom: "wrong"')
    top3 = layer.replace('"accuracy"', '"top3"').replace("include", "accuracy_param { top_k: 3 } include")
    wrong = 'layer { name: "wrong" type: "Power" bottom: "ip" top: "wrong" power_param { scale: -1 } }'
    write_images(tmp_path, IMAGES.replace(layer, "\n".join([wrong, aux, layer, top3])))
    write_solver(tmp_path, SCHEDULE.replace("max_iter: 6", "max_iter: 60"))
    mislabel(tmp_path)
    results, _ = swept(tmp_path, "base_lr=0.05")
    assert results[0].accuracy == 0.5


def test_results_of_an_earlier_form_are_scored_anew_and_not_trained(tmp_path: Path) -> None:
    write_solver(write_images(tmp_path), SCHEDULE)
    first, _ = swept(tmp_path, "force_decay=0.01", error=0.1)
    (folder,) = (tmp_path / "out").iterdir()
    old = {
        "fields": {"force_decay": "0.01"}, "seed": 1, "accuracy": 0.5, "loss": 1.0, "ranks": [2], "full_ranks": [4],
        "macs": 768, "macs_cut": 700, "accuracy_cut": 0.5, "accuracy_tuned": None, "seconds": 1.0, "failed": "",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({"asked": {"error": 0.1, "finetune": 0}, "result": old}))
    again, told = swept(tmp_path, "force_decay=0.01", error=0.1)
    assert "done before" not in told and replace(again[0], seconds=0) == replace(first[0], seconds=0)
    log = (folder / "train.log").read_text()
    assert log.count("] Iteration 0 (") == log.count("] Restoring previous") == 1


@pytest.mark.parametrize("where", ["finetune", "train"])
def test_a_full_disk_ends_the_sweep(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of one setting, as a loss that isn't finite is."""
    write_solver(write_images(tmp_path), SCHEDULE)

    def full(*args: object, **named: object) -> None:
        raise ForceregError("cannot write net: no space left on device; free some space or write elsewhere")

    if where == "finetune":
        monkeypatch.setattr(Evaluator, "finetune", full)
    else:
        monkeypatch.setattr("forcereg.study.sweep_run.train", full)
    with pytest.raises(ForceregError, match="no space left"):
        swept(tmp_path, "base_lr=0.1,0.2", finetune=1)


def test_fine_tuning_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_solver(write_images(tmp_path), SCHEDULE)

    def bad(*args: object, **named: object) -> None:
        raise NotFinite("the loss is not finite at iteration 1")

    monkeypatch.setattr(Evaluator, "finetune", bad)
    results, told = swept(tmp_path, "base_lr=0.1,0.2", finetune=1)
    assert [run.failed for run in results] == ["fine-tuning: the loss is not finite at iteration 1"] * 2
    assert told.count("failed: ") == 2 and all(run.accuracy_cut is not None for run in results)


@pytest.mark.parametrize(
    ("rank", "fits"), [("4", True), ("4-16", True), ("whole", True), ("9" * 5000, False), ("-", False)]
)
def test_ranks_of_a_result_are_ranks(rank: str, fits: bool) -> None:
    result = Result({}, 1, ranks=[rank])
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="ranks that no layer has"):
        result.check()
