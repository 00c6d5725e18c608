"""`forcereg check`: every problem of a run is found, without running it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from forcereg.check import Options, Report, check_file, looks_like_solver
from forcereg.errors import ForceregError
from forcereg.shipped import configs_dir, shipped_configs
from tests.data.lmdbs import numbered, put_lmdb
from tests.data.pictures import put_images

NET = """
name: "n"
layer {{ name: "d" type: "Data" top: "data" top: "label" data_param {{ source: "db" batch_size: 4 backend: LMDB }} }}
{inner}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: {classes} weight_filler {{ type: "xavier" }} }} {more} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""
SOLVER = """
net: "net.prototxt"
base_lr: 0.1
lr_policy: "step"
gamma: 0.1
stepsize: 10
max_iter: 40
display: 10
test_iter: 5
test_interval: 20
snapshot: 20
snapshot_prefix: "out"
solver_mode: CPU
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a working solver, its net, and 20 records of 10 classes."""
    monkeypatch.chdir(tmp_path)
    put_lmdb(tmp_path / "db", numbered(20))
    put_net(tmp_path)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def put_net(folder: Path, inner: str = "", classes: int = 10, more: str = "") -> None:
    (folder / "net.prototxt").write_text(NET.format(inner=inner, classes=classes, more=more))


def edited(folder: Path, *changes: tuple[str, str]) -> Report:
    text = SOLVER
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "solver.prototxt").write_text(text)
    return check_file(folder / "solver.prototxt")


def test_a_good_solver(here: Path) -> None:
    report = check_file("solver.prototxt")
    assert report.errors == [] and report.warnings == []
    assert report.facts["schedule"] == "40 iterations, 4 displays, 3 tests, 2 snapshots"
    assert report.facts["training data"] == "20 records, 8.0 times over in steps of 4"
    assert report.facts["learning rate"] == "step: 0.1 at first, 0.0001 at last"
    assert report.facts["snapshots"].startswith(f"2 under {here / 'out'}, ")
    assert report.facts["train net"] == "3 layers, 210 parameters, 200 MACs an item, batch 4"
    assert {path.name for path in here.iterdir()} == {"db", "net.prototxt", "solver.prototxt"}


def test_a_good_net(here: Path) -> None:
    report = check_file("net.prototxt")
    assert report.errors == [] and report.warnings == []
    assert set(report.facts) == {"TRAIN net", "TEST net", "TRAIN data 'd'", "TEST data 'd'"}


SHIPPED = [file.path.as_posix() for file in shipped_configs() if file.path.suffix == ".prototxt"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_lack_only_their_data(name: str) -> None:
    options = Options(input_shapes={"data": (2, *_image(name)), "label": (2,)}, records=0)
    report = check_file(configs_dir() / name, options)
    assert [error for error in report.errors if "cannot write snapshots" not in error] == []


def _image(name: str) -> tuple[int, int, int]:
    sizes = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "alexnet": (3, 227, 227), "caffenet": (3, 227, 227)}
    return next((size for part, size in sizes.items() if part in name), (3, 224, 224))


BAD_INNER = """
layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 9 } }
layer { name: "q" type: "Convolutoin" bottom: "data" top: "q" }
layer { name: "r" type: "ReLU" bottom: "dat" top: "r" }
layer { name: "s" type: "ReLU" bottom: "p" top: "s" }
layer { name: "t" type: "ReLU" bottom: "data" top: "label" }
layer { name: "u" type: "ReLU" bottom: "data" top: "u" include { phase: TRAIN } exclude { phase: TEST } }
"""


def test_every_problem_of_a_net_is_listed(here: Path) -> None:
    put_net(here, BAD_INNER)
    report = edited(here, ("base_lr: 0.1\n", ""), ("stepsize: 10\n", ""), ('"out"', '"no/out"'))
    layers = [error.split("layer '")[1][0] for error in report.errors if "layer '" in error]
    assert sorted(layers) == sorted("pqrtu")
    others = " ".join(error for error in report.errors if "layer '" not in error)
    assert "base_lr is missing" in others and "stepsize is 0" in others and "make the folder" in others
    assert any("TRAIN net: 2 layers (r, s) lie behind" in text for text in report.warnings)
    assert len(report.errors) == len(set(report.errors)) == 8


WRONG = """
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 2 }
  param {} param {} param {} }
layer { name: "b" type: "ReLU" bottom: "a" top: "b" propagate_down: true propagate_down: true
  include { phase: TRAIN } exclude { phase: TEST } }
layer { name: "b2" type: "ReLU" bottom: "b" top: "b2" include { phase: TRAIN } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "c" inner_product_param { num_output: 2 } }
layer { name: "e" type: "Eltwise" bottom: "data" bottom: "a" top: "e" }
"""


def test_problems_that_hide_each_other_and_no_others(here: Path) -> None:
    put_net(here, WRONG)
    damage = [(b"00000003", b"\xff")]
    put_lmdb(here / "db", numbered(3) + damage)
    report = edited(here, ("test_interval: 20", "test_interval: 0"))
    expected = [
        "layer 'b': has include and exclude",
        "layer 'b': has 2 propagate_down entries",
        "layer 'a': has 3 param entries",
        "layer 'a': the name is taken",
        "layer 'e': bottoms [4,",
        "layer 'd': db: record '00000003': not a Datum",
        "test nets need test_interval > 0",
    ]
    assert [text for text in expected if not any(text in error for error in report.errors)] == []
    assert len(report.errors) == len(expected)
    assert not any("--input-shape" in text for text in report.warnings)


def test_what_is_wrong_in_both_phases_is_told_once(here: Path) -> None:
    put_net(here, 'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 9 } }')
    text = (here / "net.prototxt").read_text()
    data, rest = text.split("\n", 3)[2], text.split("\n", 3)[3]
    both = [
        data.replace('top: "data"', f'top: "data" include {{ phase: {phase} }}').replace(
            "batch_size: 4", f"batch_size: {n}"
        )
        for phase, n in (("TRAIN", 4), ("TEST", 5))
    ]
    wrong = 'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "ip" top: "e" }\n'
    (here / "net.prototxt").write_text("\n".join([*both, rest, wrong]))
    report = check_file("net.prototxt")
    assert [error.split(": ")[1] for error in report.errors] == ["layer 'p'", "layer 'e'"]


@pytest.mark.parametrize(
    ("data", "call"),
    [
        ('"Input" {} input_param {{ shape {{ dim: 4 dim: 1 dim: 4 dim: 5 }} shape {{ dim: 4 }} }}', "solver.step"),
        ('"MemoryData" {} memory_data_param {{ batch_size: 4 channels: 1 height: 4 width: 5 }}', "set_input_arrays"),
    ],
    ids=["Input", "MemoryData"],
)
def test_data_that_a_program_gives_is_no_problem(data: str, call: str, here: Path) -> None:
    text = (here / "net.prototxt").read_text().split("\n", 3)
    tops = data.format('top: "data" top: "label"')
    (here / "net.prototxt").write_text(f'layer {{ name: "d" type: {tops} }}\n{text[3]}')
    report = check_file("solver.prototxt")
    assert report.errors == []
    (warning,) = report.warnings
    assert "layer 'd': gets its data from a program" in warning and call in warning
    assert check_file("net.prototxt").warnings == []


MEAN = "transform_param { crop_size: 3 mean_value: 7 }"
SOURCES = [
    f'"Data" top: "label" {MEAN} data_param {{ source: "db" batch_size: 4 backend: LMDB }}',
    f'"ImageData" top: "label" {MEAN} image_data_param {{ source: "list.txt" batch_size: 4 }}',
    f'"WindowData" top: "label" {MEAN} window_data_param {{ source: "windows.txt" batch_size: 4 }}',
    '"HDF5Data" hdf5_data_param { source: "h5.txt" batch_size: 4 shuffle: true }',
    '"DummyData" dummy_data_param { shape { dim: 4 dim: 2 } data_filler { type: "gaussian" } }',
]


@pytest.mark.parametrize("source", SOURCES, ids=[source.split('"')[1] for source in SOURCES])
def test_data_is_read_though_the_net_has_no_memory(source: str, here: Path) -> None:
    put_images(here, 3)
    (here / "windows.txt").write_text("# 0\n0.png\n3\n4\n5\n2\n1 1.0 0 0 3 3\n2 0.1 1 1 4 3\n")
    with h5py.File(here / "a.h5", "w") as file:
        file["data"] = np.zeros((5, 2), np.float32)
    (here / "h5.txt").write_text("a.h5\n")
    kind, rest = source.split(" ", 1)
    (here / "net.prototxt").write_text(f'layer {{ name: "d" type: {kind} top: "data" {rest} }}\n')
    report = check_file("net.prototxt")
    assert report.errors == [] and report.facts["TRAIN data 'd'"] == "the first 1,000 records read, all fine"


def test_nothing_to_learn(here: Path) -> None:
    put_net(here, more="param { lr_mult: 0 } param { lr_mult: 0 }")
    assert any("no weights that learn" in text for text in check_file("solver.prototxt").warnings)
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text[: text.index('layer { name: "loss"')])
    assert any("has no loss" in text for text in check_file("solver.prototxt").warnings)


def test_a_rate_that_falls_to_nothing(here: Path) -> None:
    report = edited(here, ("gamma: 0.1\n", ""))
    assert report.facts["learning rate"] == "step: 0.1 at first, 0 at last"
    (warning,) = report.warnings
    assert warning.endswith("solver.prototxt: the learning rate falls to 0 before the end (gamma 0)")


def test_what_lies_behind_absent_data_is_judged_by_given_shapes(here: Path) -> None:
    put_net(here, BAD_INNER.split("\n")[1])
    (here / "db" / "data.mdb").unlink()
    report = check_file("net.prototxt")
    assert len(report.errors) == 1 and "db" in report.errors[0]
    given = Options(input_shapes={"data": (4, 1, 4, 5), "label": (4,)})
    report = check_file("net.prototxt", given)
    assert len(report.errors) == 1 and "layer 'p': kernel" in report.errors[0]


@pytest.mark.parametrize("records", [4, 8, 1000])
def test_labels_of_the_first_records(records: int, here: Path) -> None:
    put_net(here, classes=7)
    report = check_file("net.prototxt", Options(records=records))
    found = [error for error in report.errors if "record '00000007': label 7 found, expected 0 to 6" in error]
    assert len(found) == (records >= 8)


def test_a_damaged_record(here: Path) -> None:
    put_lmdb(here / "db", [(b"00000005", b"\xff\xff")])
    (error,) = check_file("net.prototxt").errors
    assert "record '00000005'" in error


def test_force_without_force_mult(here: Path) -> None:
    report = edited(here, ("max_iter", "force_decay: 0.1 max_iter"))
    assert any("nothing is regularized" in text for text in report.warnings)
    put_net(here, more="param { force_mult: 1 }")
    report = check_file("solver.prototxt")
    assert report.warnings == [] and report.facts["force"] == "Degradation 0.1 on ip"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("max_iter: 40", "max_iter: 40 average_loss: 0", "average_loss is 0; expected >= 1"),
        ("max_iter: 40", 'max_iter: 40 type: "Sgd"', "unknown solver type 'Sgd'; did you mean"),
        ("max_iter: 40", 'max_iter: 40 weights: "w.caffemodel.h5"', "w.caffemodel.h5"),
        ('"net.prototxt"', '"nt.prototxt"', "net 'nt.prototxt' does not exist under"),
        ("test_interval: 20", "test_interval: 0", "test nets need test_interval > 0"),
        ("base_lr: 0.1", "base_lr: nan", "base_lr is nan; expected a finite number"),
        ("max_iter: 40", "max_iter: 40 momentum: -inf", "momentum is -inf; expected a finite number"),
    ],
)
def test_problems_of_a_solver(old: str, new: str, text: str, here: Path) -> None:
    report = edited(here, (old, new))
    assert [error for error in report.errors if text in error]


def test_snapshots_that_the_disk_cannot_hold(here: Path) -> None:
    report = edited(here, ("max_iter: 40", "max_iter: 2000000000"), ("snapshot: 20", "snapshot: 1"))
    (error,) = report.errors
    assert "2,000,000,000 snapshots need" in error and "free; make room" in error


def test_a_test_that_does_not_see_every_record(here: Path) -> None:
    report = edited(here, ("test_iter: 5", "test_iter: 3"))
    assert report.warnings == ["test net #0 sees 12 of 20 records a test (test_iter 3)"]


def test_weights_that_do_not_fit(here: Path) -> None:
    from forcereg.snapshot import write_model

    write_model(here / "w.caffemodel.h5", {"ip": {0: np.zeros((3, 20), np.float32), 1: np.zeros(3, np.float32)}})
    report = edited(here, ("max_iter", 'weights: "w.caffemodel.h5" max_iter'))
    (error,) = report.errors
    assert "shape (3, 20) in the file, (10, 20) in the net" in error


def test_a_file_that_does_not_parse(here: Path) -> None:
    (here / "net.prototxt").write_text("layer {\n nme: 'x' }")
    assert len(check_file("net.prototxt").errors) == len(check_file("solver.prototxt").errors) == 1
    assert "net.prototxt:2" in check_file("net.prototxt").errors[0]


def test_which_files_are_solvers(here: Path) -> None:
    assert looks_like_solver("solver.prototxt") and not looks_like_solver("net.prototxt")
    with pytest.raises(ForceregError, match="no such file"):
        looks_like_solver("none.prototxt")
    for file in shipped_configs():
        assert looks_like_solver(configs_dir() / file.path) == (file.kind == "solver")
