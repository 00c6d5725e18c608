"""What would end a run at its first snapshot or test is told before iteration 0, in the words of `check`."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from forcereg.errors import ForceregError
from forcereg.snapshot import read_model
from forcereg.solver.loop import Solver
from forcereg.solver.prefix import probe_prefix
from forcereg.study.check import check_file
from tests.broken.case import NET, SOLVER
from tests.conftest import RunCli
from tests.solver.nets import REGRESSION, Recorder, regression

FORMATS = pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(net: str = NET, extra: str = 'snapshot_prefix: "s"', form: str = "HDF5") -> Path:
    """A solver of two iterations that saves itself at each."""
    Path("net.prototxt").write_text(net)
    text = SOLVER.replace("max_iter: 1\n", "max_iter: 2\nsnapshot: 1\n").replace("snapshot_after_train: false\n", "")
    Path("solver.prototxt").write_text(f"{text}snapshot_format: {form}\n{extra}\n")
    return Path("solver.prototxt")


def refused(path: Path) -> str:
    """The one problem that `check` finds, which ends a run before its first iteration; nothing is left behind."""
    before = sorted(Path().rglob("*"))
    report = check_file(path)
    recorder = Recorder()
    with pytest.raises(ForceregError) as caught:
        Solver(path, observers=[recorder]).solve()
    assert report.errors == [str(caught.value)]
    assert not recorder.of("train") and sorted(Path().rglob("*")) == before
    return str(caught.value)


def named(*names: str) -> str:
    """A net of InnerProduct layers with these names, as they are written in a prototxt."""
    data, _, _ = NET.splitlines()
    param = "inner_product_param { num_output: 2 }"
    layers = [
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "y{i}" {param} }}'
        for i, name in enumerate(names)
    ]
    loss = 'layer { name: "l" type: "EuclideanLoss" bottom: "y0" bottom: "y0" top: "loss" }'
    return "\n".join([data, *layers, loss, ""])


NAMES = [
    (("fc", "fc/0"), "a layer may not be called 'fc/0' beside 'fc'"),
    (("a/b", "a/b/1/c"), "a layer may not be called 'a/b/1' beside 'a/b'"),
    (("fc/0/x", "fc"), "a layer may not be called 'fc/0' beside 'fc'"),
    (("",), "layer '' cannot be stored in HDF5"),
    ((".",), "layer '.' cannot be stored in HDF5"),
    (("a/./b",), "cannot be stored in HDF5"),
    (("a//b",), "cannot be stored in HDF5"),
    (("a/",), "cannot be stored in HDF5"),
    (("/a",), "cannot be stored in HDF5"),
    (("a\\000b",), "cannot be stored in HDF5"),
    (("a/" * 2000 + "b",), "choose a shorter name"),
    (("fc", "fc/2"), None),
    (("a.b", ".."), None),
    (("a b", "\\303\\251", "a%b", "0", "data"), None),
    (("x" * 3000,), None),
]  # fmt: skip


@pytest.mark.parametrize(("names", "says"), NAMES, ids=[" ".join(names)[:20] for names, _ in NAMES])
@FORMATS
def test_names_that_a_format_cannot_hold(names: tuple[str, ...], says: str | None, form: str) -> None:
    path = put(named(*names), form=form)
    if says and form == "HDF5":
        assert says in refused(path)
        return
    assert check_file(path).errors == []
    solver = Solver(path, observers=[Recorder()])
    solver.solve()
    assert solver.last_snapshot is not None
    assert read_model(solver.last_snapshot).layers.keys() == solver.net.params.keys()


@FORMATS
def test_a_data_layer_that_a_state_cannot_name(form: str) -> None:
    says = {"HDF5": "snapshots can't hold the name", "BINARYPROTO": "snapshots can't hold the name"}
    assert says[form] in refused(put(NET.replace('name: "d"', 'name: "d\\000"'), form=form))


def test_a_borrowed_blob_is_in_the_way_only_where_it_is_written() -> None:
    """HDF5 models hold a shared blob once, but the last update of each layer."""
    net = (
        named("fc", "other", "other/0")
        .replace('"y1"', '"y1" param { name: "w" }')
        .replace('"y2"', '"y2" param { name: "w" }')
    )
    assert "a layer may not be called 'other/0' beside 'other'" in refused(put(net))
    net = named("first", "fc", "fc/0").replace('"y0" inner', '"y0" param { name: "w" } param { name: "b" } inner')
    net = net.replace('"y1" inner', '"y1" param { name: "w" } param { name: "b" } inner')
    put(net)
    Solver("solver.prototxt", observers=[Recorder()]).solve()
    extra = 'snapshot_prefix: "t" snapshot_diff: true'
    assert "a layer may not be called 'fc/0' beside 'fc'" in refused(put(net, extra))


def folder(name: str) -> Callable[[], object]:
    return lambda: Path(name).mkdir(parents=True)


PLACES: list[tuple[str, Callable[[], object], str]] = [
    ("no/s", lambda: None, "there is no folder"),
    ("n\\033; o/s", lambda: None, r"n\x1b; o; make the folder "),
    ("file/s", lambda: Path("file").write_text(""), "/file is no folder; correct snapshot_prefix"),
    ("file/a/s", lambda: Path("file").write_text(""), "/file is no folder; correct snapshot_prefix"),
    ("s" * 240, lambda: None, "File name too long"),
    ("s" * 234, lambda: None, "File name too long"),
    ("d/" * 2500 + "s", lambda: None, "File name too long"),
    ("s", folder("s_iter_2.solverstate.h5"), "it is no regular file"),
    ("s", folder("s_iter_1.caffemodel.h5"), "s_iter_1.caffemodel.h5: it is no regular file"),
    ("s", lambda: Path("s_iter_1.solverstate.h5").symlink_to("/dev/null"), "s_iter_1.solverstate.h5: it is no regular"),
    ("s", lambda: Path("s_iter_1.caffemodel.h5").symlink_to("gone/x"), "s_iter_1.caffemodel.h5: there is no folder"),
]


@pytest.mark.parametrize(("prefix", "prepare", "says"), PLACES, ids=[f"{p[:8]}-{s[-30:]}" for p, _, s in PLACES])
def test_places_where_nothing_can_be_written(prefix: str, prepare: Callable[[], object], says: str) -> None:
    prepare()
    error = refused(put(extra=f'snapshot_prefix: "{prefix}"'))
    assert error.startswith("solver.prototxt: cannot write snapshots to '") and says in error


@pytest.mark.parametrize(
    ("prefix", "prepare"),
    [
        ("s" * 233, lambda: None),  # with _iter_2.solverstate.h5 it is the longest name that there is
        ("s", folder("s_iter_3.caffemodel.h5")),
        ("s", folder("s_iter_1.caffemodel")),
        ("s", lambda: Path("s_iter_1.caffemodel.h5").symlink_to("elsewhere")),
        ("s", lambda: Path("s_iter_2.solverstate.h5").write_text("old")),
        ("folder", folder("folder")),
    ],
)  # fmt: skip
def test_places_that_are_fine(prefix: str, prepare: Callable[[], object]) -> None:
    prepare()
    path = put(extra=f'snapshot_prefix: "{prefix}"')
    assert check_file(path).errors == []
    solver = Solver(path, observers=[Recorder()])
    solver.solve()
    assert solver.last_snapshot is not None and solver.last_snapshot.is_file()


def test_only_what_is_still_to_come_is_in_the_way() -> None:
    solver, _ = regression(Path(), 'snapshot: 5 max_iter: 20 snapshot_prefix: "s"')
    Path("s_iter_5.caffemodel.h5").mkdir()
    probe_prefix(solver.prefix(), solver.param, "s", 5)
    Path("s_iter_7.caffemodel.h5").mkdir()
    probe_prefix(solver.prefix(), solver.param, "s", 5)
    Path("s_iter_15.caffemodel.h5").mkdir()
    with pytest.raises(ForceregError, match=r"s_iter_15.caffemodel.h5: it is no regular file"):
        probe_prefix(solver.prefix(), solver.param, "s", 5)


def test_a_disk_that_cannot_take_the_first_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    path = put()
    for free, fits in ((4 * 8 * 2 - 1, False), (1 << 20, True)):  # 8 weights and as much history
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if fits:
            Solver(path, observers=[Recorder()]).solve()
        else:
            with pytest.raises(ForceregError, match=r"a snapshot needs 64 bytes, .* has 63 free; make room"):
                Solver(path, observers=[Recorder()]).solve()
            assert "snapshots need 128 B" in check_file(path).errors[0]


def test_a_limit_on_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (31, 31))
    assert "a snapshot's file needs 32 bytes, the system's limit for one is 31" in refused(put())


DUMMY = "dummy_data_param { shape { dim: 2 dim: 3 } }"
TESTED = (
    f'layer {{ name: "d" type: "DummyData" top: "x" include {{ phase: TRAIN }} {DUMMY} }}\n'
    'layer { name: "d" TEST }\n' + NET.partition("\n")[2]
)
LATE = 'snapshot_prefix: "s" test_interval: 2 test_initialization: false test_iter: 1'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } }', "the test net '' needs input blobs x"),
        (
            'type: "MemoryData" top: "x" top: "z" memory_data_param { batch_size: 1 channels: 3 height: 1 width: 1 }',
            "has no data yet",
        ),
    ],
    ids=["Input", "MemoryData"],
)
def test_a_test_net_that_nobody_feeds(data: str, says: str) -> None:
    path = put(TESTED.replace("TEST }", f"{data} include {{ phase: TEST }} }}"), LATE)
    recorder = Recorder()
    with pytest.raises(ForceregError, match=says):
        Solver(path, observers=[recorder]).solve()
    assert not recorder.of("train")
    never = put(
        TESTED.replace("TEST }", f"{data} include {{ phase: TEST }} }}"), LATE.replace("interval: 2", "interval: 3")
    )
    Solver(never, observers=[recorder]).solve()  # no test comes


def test_a_file_that_a_test_net_writes() -> None:
    output = 'layer { name: "o" type: "HDF5Output" bottom: "x" bottom: "y" include { phase: TEST } PARAM }\n'
    path = put(NET + output.replace("PARAM", 'hdf5_output_param { file_name: "no/out.h5" }'), LATE)
    assert "net.prototxt:4: layer 'o': cannot write" in refused(path)
    Path("no").mkdir()
    assert check_file(path).errors == []


def test_in_one_line(here: Path, run_cli: RunCli) -> None:
    put(named("fc", "fc/0"))
    for command in (("check", "solver.prototxt"), ("train", "--solver", "solver.prototxt")):
        done = run_cli(*command, cwd=here)
        says = "solver.prototxt: a layer may not be called 'fc/0' beside 'fc'; rename it"
        line = done.stderr if command[0] == "train" else done.stdout
        assert done.returncode == 1 and f": {says}" in line.splitlines()[-1] and "Iteration" not in done.stderr


def test_a_run_that_saves_nothing_needs_no_place() -> None:
    solver, recorder = regression(
        Path(), 'max_iter: 0 snapshot_after_train: false snapshot_prefix: "no/s"', net=REGRESSION
    )
    solver.solve({})
    assert recorder.of("done")
