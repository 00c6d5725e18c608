"""`forcereg report`: what a page says of snapshots, logs and studies is what their files hold, and no more."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.report.markup import short
from forcereg.report.page import Bars, Command, Facts, Gallery, Grid, Part, Picture, Section, Text
from forcereg.snapshot import read_model, write_model
from forcereg.study.reported import history, sources, studies
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.report.browser import WIDTHS, Browser
from tests.report.test_page import Read
from tests.scratch import SNAPSHOT, prepare

pytest.importorskip("matplotlib")
MODEL, LOW = f"{SNAPSHOT}.caffemodel.h5", f"{SNAPSHOT}_lowrank.caffemodel.h5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `scratch.prepare`."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return prepare(folder)


@pytest.fixture
def scratch(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def titled(report: forcereg.Report, title: str) -> list[Part]:
    """The parts of the sections of a title."""
    return [part for one in report.sections if one.title == title for part in one.parts]


def grid(report: forcereg.Report, title: str, at: int = 0) -> list[dict[str, object]]:
    """A table's rows, by their headings."""
    found = [one for one in titled(report, title) if isinstance(one, Grid)][at]
    return [dict(zip(found.headings, row, strict=True)) for row in found.rows]


def pictures(report: forcereg.Report) -> Iterator[Picture]:
    for part in (part for one in report.sections for part in one.parts):
        yield from part.pictures if isinstance(part, Gallery) else [part] if isinstance(part, Picture) else []


# -- a snapshot


@pytest.fixture(scope="module")
def both(made: Path) -> forcereg.Report:
    """Of a log, the net that it is of and the one that was made of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        return forcereg.report_on(["train.json", MODEL, LOW], passes=2, error=[0.01, 0.3], fc=True, device="cpu")


def test_a_page_agrees_with_the_other_calls(both: forcereg.Report, scratch: Path) -> None:
    deployed = forcereg.deploy(MODEL, batch=1)
    net = forcereg.summary(deployed.net)
    assert [(row["layer"], row["MACs"]) for row in grid(both, "Layers")] == [
        *((row.name, f"{row.macs:,}" if row.macs else "") for row in net.rows),
        ("whole net", f"{net.macs:,}"),
    ]
    known = forcereg.ranks(MODEL, error=[0.01, 0.3], fc=True).report["layers"]
    shown = grid(both, "Ranks and angles")
    assert [[row["layer"], row["0.01"], row["0.3"]] for row in shown] == [
        [one["name"], *map(str, one["ranks"])] for one in known
    ]
    for row, one in zip(shown, known, strict=True):
        bar = row["share of the full rank"]
        assert isinstance(bar, Bars) and list(bar.shares) == [rank / one["full_rank"] for rank in one["ranks"]]
        (line,) = forcereg.filters(MODEL, layer=one["name"], angles=True).view.lines()
        assert f"mean angle {str(row['angle']).removesuffix('°')} degrees" in line
    # the net is right about all records, as confusion counts them
    assert forcereg.confusion("net.prototxt", MODEL).accuracy == 1
    assert [row["accuracy"] for row in grid(both, "At a glance")] == ["100.00%"] * 2


def test_a_decomposed_net_has_the_ranks_it_was_cut_to(both: forcereg.Report, made: Path) -> None:
    rows = grid(both, "Ranks and angles", 1)
    assert [row["has rank"] for row in rows] == ["4 of 8", "6 of 16", "whole"]
    # before: in the net that it was made of
    assert [row["angle before"] for row in rows] == [row["angle"] for row in grid(both, "Ranks and angles")]
    assert rows[0]["angle before"] != rows[0]["angle"]
    (facts,) = (part for part in titled(both, f"{SNAPSHOT}_lowrank") if isinstance(part, Facts))
    told = dict(facts.rows)["decomposed"]
    assert told.startswith("conv1 4 of 8 (pca, error 0.") and told.endswith(f", from {MODEL}")


def test_the_files_and_their_checksums(both: forcereg.Report, made: Path) -> None:
    rows = grid(both, "Files")
    assert [row["file"] for row in rows] == ["train.json", MODEL, LOW]
    for row in rows:
        data = (made / str(row["file"])).read_bytes()
        assert (row["bytes"], row["SHA-256"]) == (f"{len(data):,}", hashlib.sha256(data).hexdigest())


def test_the_commands_make_the_same_again(both: forcereg.Report, scratch: Path, run_cli: RunCli) -> None:
    """As the page says: the solver into solver.prototxt, the ranks into ranks.json."""
    solver, _ = (part for part in titled(both, f"{SNAPSHOT}_lowrank") if isinstance(part, Text))
    train, ranks, decompose = [part.text for part in titled(both, "To make it again") if isinstance(part, Command)][-3:]
    before = {path: read_model(path).layers for path in (MODEL, LOW)}
    for path in before:
        Path(path).unlink()
    Path("solver.prototxt").write_text(solver.text)
    Path("ranks.json").write_text(ranks)
    for call in (train, decompose):
        done = run_cli(*call.split()[1:], cwd=scratch)
        assert done.returncode == 0, done.stderr
    for path, layers in before.items():
        now = read_model(path).layers
        assert all(np.array_equal(now[name][at], blob) for name, blobs in layers.items() for at, blob in blobs.items())


def test_what_is_not_known_is_said_and_not_made_up(scratch: Path) -> None:
    """A model as Caffe leaves it, its data gone."""
    write_model(scratch / "caffe.caffemodel.h5", read_model(MODEL).layers)
    shutil.rmtree("test_lmdb")
    with pytest.raises(ForceregError, match=r"caffe\.caffemodel\.h5: holds no net text .*; give it by --model"):
        forcereg.report_on("caffe.caffemodel.h5")
    found = forcereg.report_on(
        "caffe.caffemodel.h5", model="net.prototxt", input_shapes={"data": [6, 1, 8, 8], "label": [6]}, passes=0,
        device="cpu",
    )  # fmt: skip
    left = "\n".join(found.left)
    for line in (
        "curves: no log is given", "the solver of caffe: the file doesn't hold it",
        "milliseconds of caffe: not measured",
        "angles of caffe before: its run's first snapshot isn't beside it", "accuracy of caffe: ", "test_lmdb",
    ):  # fmt: skip
        assert line in left
    text = found.html()
    assert all(one not in text for one in ("To make it again", ">ms<", ">seed<", ">Accuracy<", "angle before"))
    assert [list(row) for row in grid(found, "At a glance")] == [["net", "parameters", "MACs"]]


def test_the_first_snapshot_of_the_run_is_before(scratch: Path) -> None:
    layers = {name: {at: -blob if at else np.ones_like(blob) for at, blob in blobs.items()}
              for name, blobs in read_model(MODEL).layers.items()}  # fmt: skip
    for iteration in (5, 10):
        write_model(scratch / f"net_iter_{iteration}.caffemodel.h5", layers, attrs=read_model(MODEL).attrs)
    write_model(scratch / "net_iter_30.caffemodel.h5", layers, attrs=read_model(MODEL).attrs)
    assert sources.before(Path(MODEL), None) == Path("net_iter_5.caffemodel.h5")
    assert sources.before(Path("net_iter_5.caffemodel.h5"), None) is None
    assert sources.before(Path(LOW), "gone.caffemodel") is None
    assert sources.before(Path("x") / LOW, MODEL, [Path(LOW), Path(MODEL)]) == Path(MODEL)
    found = forcereg.report_on(MODEL, passes=0, score=False, device="cpu")
    # filters that are all alike have no angle between them
    assert [row["angle before"] for row in grid(found, "Ranks and angles")] == ["0.0°", "0.0°"]
    assert [row["file"] for row in grid(found, "Files")] == [MODEL, "net_iter_5.caffemodel.h5"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '[{"snapshot": "x"}]',
        '[{"snapshot": 1, "layers": []}]',
        '[{"snapshot": "x", "layers": [{"name": 3}]}]',
    ],
)
def test_damaged_provenance_is_left_out(text: str, scratch: Path) -> None:
    model = read_model(MODEL)
    write_model(scratch / "odd.caffemodel.h5", model.layers, attrs={**model.attrs, "forcereg_decomposed": text,
                "forcereg_solver": "base_lr: {", "forcereg_teacher": "[]"})  # fmt: skip
    found = forcereg.report_on("odd.caffemodel.h5", passes=0, score=False, device="cpu")
    assert "how odd was decomposed: the attribute forcereg_decomposed isn't of forcereg's form" in found.left
    assert "has rank" not in grid(found, "Ranks and angles")[0]


def test_a_later_version_may_say_more_of_a_decomposition() -> None:
    layer = {"name": "a", "method": "pca", "full_rank": 4, "ranks": [2], "error": 0, "more": 1}
    found = history.cuts_of({"forcereg_decomposed": json.dumps([{"snapshot": "x", "layers": [layer], "by": "me"}])})
    assert [one.name for one in found[0].layers] == ["a"]


# -- what is named


def test_a_folder_is_what_lies_in_it(scratch: Path) -> None:
    folder = scratch / "run"
    folder.mkdir()
    for name in ("a_iter_9", "a_iter_10", "b_iter_3", "low"):
        shutil.copy(LOW, folder / f"{name}.caffemodel.h5")
    for name in ("train.log", "train.json"):
        shutil.copy(name, folder)
    (folder / "run.json").write_text("{}")
    (folder / "notes.txt").write_text("x")
    found = sources.sources([folder])
    assert [path.name for path in found.snapshots] == [
        "a_iter_10.caffemodel.h5", "b_iter_3.caffemodel.h5", "low.caffemodel.h5",
    ]  # fmt: skip
    assert [path.name for path in found.logs] == ["train.json", "train.log"] and not found.studies


@pytest.mark.parametrize(
    ("named", "kind", "message"),
    [
        ([], UsageError, "runs is empty; give one or several"),
        ("gone", ForceregError, "gone: no such file or folder; name a snapshot, a log"),
        ("photos", ForceregError, "photos: holds no .caffemodel, no log and no results.csv"),
        ("photos.txt", ForceregError, "photos.txt: holds no line like 'Iteration 100, loss = 0.5'"),
        ("table.csv", ForceregError, "table.csv: is no results.csv of sweep or tune, and no table of frontier"),
        ([MODEL, f"photos/../{MODEL}"], UsageError, "given twice"),
    ],
)
def test_what_cannot_be_reported_on(named: object, kind: type[ForceregError], message: str, scratch: Path) -> None:
    Path("table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(kind, match=message.replace(".", r"\.")):
        forcereg.report_on(named, passes=0, score=False, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "line"), [("1,2,3\n", 3), ('"\n', 3)])
def test_damaged_tables(rows: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("accuracy,ranks_at_error,full_ranks,setting\n0.5,1,2,x\n" + rows)
    with pytest.raises(ForceregError, match=rf"results\.csv:{line}: is no row of a study's table"):
        studies.read_study(path)


def test_cells_for_people(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(
        "# remark <b>\nsetting,accuracy,ranks_at_error,full_ranks,macs,failed\nx,0.5,1,2,12345,\ny,odd,1,2,,\n"
    )
    study = studies.read_study(path)
    table = studies.grid(study)
    assert study.remarks == ["remark <b>"] and study.kind == "sweep"
    assert list(table.headings) == ["setting", "accuracy", "ranks at error", "full ranks", "macs"]
    assert table.rows == [["x", "50.00%", "1", "2", "12,345"], ["y", "odd", "1", "2", ""]]
    left: list[str] = []
    assert [part for part in studies.parts(study, left.append) if isinstance(part, Grid)] == [table]
    assert "there is no sweep.svg beside it" in left[0] and "is no row of a sweep's results" in left[1]


# -- the command line


def test_train_leaves_a_page(scratch: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of names that nobody would choose; resumed it has the whole run's curves. A browser shows it all."""
    net = Path("net.prototxt").read_text().replace('"conv1"', '"<img src=x onerror=alert(1)>&amp;"')
    Path("net.prototxt").write_text(net.replace('name: "ip"', f'name: "{"w" * 250}"'))
    own = ("--set", "snapshot_prefix=<script>run'", "--report", "page.html", "--device", "cpu")
    for more in ((), ("--resume", "auto", "--max-iter", "30")):
        done = run_cli("train", "--solver", "solver.prototxt", *own, *more, cwd=scratch)
        assert done.returncode == 0 and done.stdout == "", done.stderr
        assert "wrote page.html" in done.stderr.splitlines()[-1]
    text = Path("page.html").read_text()
    assert "forcereg train --solver solver.prototxt" in text
    assert not {"script", "iframe", "object"} & {tag for tag, _ in Read(text).elements}
    runs = [json.loads(line) for line in Path("page.jsonl").read_text().splitlines()]
    assert [one["iteration"] for one in runs if one["event"] == "final"] == [20, 30]
    browser = Browser(tmp_path_factory.mktemp("browser"))
    assert browser.console(Path("page.html")) == []
    for view, width in zip(browser.views(Path("page.html")), WIDTHS, strict=True):
        assert (view.width, view.overflow, view.scripts) == (width, 0, 0)
        # loss, score, rate, rank, cosine and force, the filters, the matrix
        assert len(view.images) >= 8 and min(view.images) > 0
        assert len(view.drawings) == 2 and min(view.drawings) > 0
        assert "<img src=x onerror=alert(1)>&amp;" in view.text and "<script>run'_iter_30" in view.text
        assert "100.00%" in view.text


@pytest.mark.long
def test_finetuning_by_two_processes_leaves_one_page(scratch: Path, run_cli: RunCli) -> None:
    """Which the first writes, of what all did."""
    low = ("--model", f"{SNAPSHOT}_lowrank.prototxt", "--weights", LOW)
    own = ("--max-iter", "4", "--set", "test_interval=2", "--device", "cpu", "--report", "page.html", "--nproc", "2")
    done = run_cli("finetune", "--solver", "solver.prototxt", *low, *own, cwd=scratch, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote page.html") == 1 and "wrote page.html" in done.stderr.splitlines()[-1]
    events = [json.loads(line) for line in Path("page.jsonl").read_text().splitlines()]
    assert [one["iteration"] for one in events if one["event"] == "test"] == [0, 2, 4]
    told = "\n".join(Read(Path("page.html").read_text()).texts)
    for line in ("--nproc 2", "net_finetuned_iter_4", "Curves", "4 of 8", "100.00%"):
        assert line in told, line
    assert "left out: curves" not in done.stderr and "left out: accuracy" not in done.stderr


def test_a_run_with_nothing_to_show_is_still_a_page(scratch: Path, cli: Cli) -> None:
    """No test net, no line, no snapshot; then a snapshot without its solver, log or data."""
    fields = ("test_iter=[]", "test_interval=0", "display=0", "snapshot_after_train=false", "max_iter=0")
    own = [one for field in fields for one in ("--set", field)]
    code, _, err = cli("train", "--solver", "solver.prototxt", *own, "--device", "cpu", "--report", "page.html")
    assert code == 0 and "wrote page.html" in err, err
    texts = Read(Path("page.html").read_text()).texts
    assert "Not in this report" in texts and any(text.startswith("curves: ") for text in texts)
    write_model(scratch / "bare.caffemodel.h5", read_model(MODEL).layers)
    found = forcereg.report_on("bare.caffemodel.h5", model="deploy.prototxt", passes=0, device="cpu")
    found.write("bare.html")
    assert any(line.startswith("accuracy of bare: ") for line in found.left)
    Read(Path("bare.html").read_text())


def test_names_of_runs_classes_and_titles_are_text(scratch: Path) -> None:
    """Whatever they are: the page has the same elements, and shows them."""
    hostile = ('a"><img src=x onerror=alert(1)>', "javascript:alert(1)", "\u202egnp.exe", "שכבה" * 12)
    pages = []
    for names in (("one", "two", "three", "four"), hostile):
        folder = scratch / f"run{len(pages)}"
        folder.mkdir()
        for name in names[:2]:
            shutil.copy(MODEL, folder / f"{name}.caffemodel.h5")
        shutil.copy("train.json", folder / f"{names[2]}.jsonl")
        found = forcereg.report_on(
            sorted(folder.iterdir()), title=names[3], labels=names[:3], passes=0, device="cpu"
        )  # fmt: skip
        found.write(page := f"page{len(pages)}.html")
        pages.append(Read(Path(page).read_text(encoding="utf-8")))
    plain, other = pages
    assert [*map(repr, other.elements)] == [*map(repr, plain.elements)]
    shown = "".join(other.texts)
    assert all(short(name) in shown for name in hostile) and "\u202e" not in shown


def test_studies_leave_pages(scratch: Path, cli: Cli) -> None:
    code, out, err = cli(
        "sweep", "--solver", "solver.prototxt", "--set", "force_decay=0,0.01", "--max-iter", "2", "--device", "cpu",
        "--report", "sweep.html",
    )  # fmt: skip
    assert code == 0 and "wrote sweep.html" in out, err
    frontier = (
        "frontier",
        MODEL,
        "--solver",
        "solver.prototxt",
        "--ranks",
        "2,2",
        "--latency",
        "no",
        "--device",
        "cpu",
    )
    code, out, err = cli(*frontier, "-o", "front.png", "--report", "front.html")
    assert code == 0 and "wrote front.html" in out, err
    for name in ("sweep.html", "front.html"):
        assert "<html" in Path(name).read_text()
    found = forcereg.report_on("sweep", device="cpu")
    assert [row["setting"] for row in grid(found, "sweep sweep/results.csv")] == ["force_decay=0", "force_decay=0.01"]
    assert [one.kind for one in pictures(found)] == ["svg", "svg"] and found.left == ()
    (solver,) = (part.text for part in titled(found, "sweep sweep/results.csv") if isinstance(part, Text))
    assert "force_decay: 0.0\n" in solver and "max_iter: 2\n" in solver
    found = forcereg.report_on("front.csv", device="cpu")
    (section, _) = found.sections
    assert [one.kind for one in pictures(found)] == ["png"]
    rows = next(part.rows for part in section.parts if isinstance(part, Grid))
    assert [row[:3] for row in rows] == [[SNAPSHOT, "", "whole"], [SNAPSHOT, "pca", "ranks 2,2"]]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((MODEL, "-o", "x.pdf"), 2, "the report is 'x.pdf'; expected a name that ends in .html"),
        ((MODEL, "-o", "no/x.html"), 1, "cannot write no/x.html: there is no folder "),
        ((MODEL, "-o", "x.html", "--error", "2"), 2, "--error"),
    ],
)
def test_wrong_calls(args: tuple[str, ...], code: int, message: str, scratch: Path, cli: Cli) -> None:
    found, _, err = cli("report", *args)
    assert found == code and message in said(err)
    assert not list(scratch.glob("x.*"))


def test_without_matplotlib(scratch: Path, run_cli: RunCli) -> None:
    (scratch / "matplotlib.py").write_text("raise ImportError('none')")
    done = run_cli("report", MODEL, "-o", "x.html", cwd=scratch, env={"PYTHONPATH": str(scratch)})
    assert done.returncode == 1
    assert said(done.stderr) == 'plots need matplotlib; install it with pip install "forcereg[plot]"'


def test_sections_are_data() -> None:
    """A page is made of what was gathered alone."""
    report = forcereg.Report("<title>", (Section("one", [Text("x")]),), ("not known",), "cpu, 1 thread")
    text = report.html("a & b")
    assert "&lt;title&gt;" in text and "a &amp; b" in text and "not known" in text and "cpu, 1 thread" in text
