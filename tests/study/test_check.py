"""`forcereg check`: every problem of a run is found, without running it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.schema.text import parse_solver
from forcereg.solver import policy
from forcereg.solver.loop import Solver
from forcereg.study.check import Options, Report, check_file, looks_like_solver
from forcereg.system.shipped import configs_dir, shipped_configs
from tests.conftest import RunCli
from tests.data.lmdbs import numbered, put_lmdb, raw
from tests.data.pictures import put_images
from tests.solver.nets import Recorder

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


def test_a_solver_with_a_schedule_beyond_caffe_s(here: Path) -> None:
    report = edited(here, ('lr_policy: "step"', 'lr_policy: "cosine" warmup_iter: 10 ema_decay: 0.9 pct_start: 0.1'))
    assert report.facts["learning rate"] == "cosine: 0.01 at first, 0.0853553 at iteration 10, 0.000154133 at last"
    assert report.facts["averaged weights"] == "decay 0.9; tested and saved beside the plain ones"
    (said,) = (text for text in report.warnings if "pct_start" in text)
    assert said.endswith('lr_policy "cosine" doesn\'t look at pct_start; "onecycle" does')


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
    assert report.errors == []
    read = {"ImageData": "all 3 records", "HDF5Data": "all 5 records", "Data": "all 20 records"}
    found = read.get(kind.split('"')[1], "the first 1,000 records")
    assert report.facts["TRAIN data 'd'"] == f"{found} read, all fine"


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


BAD_VALUE = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)


def put_h5(folder: Path, value: float, shuffle: bool = False) -> None:
    """A net on 8 rows of an HDF5 file, one of row 5's values `value`."""
    data = np.ones((8, 3), np.float32)
    data[5, 1] = value
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"], file["label"] = data, np.zeros(8, np.float32)
    (folder / "a.txt").write_text("a.h5\n")
    put_net(folder)
    text = (folder / "net.prototxt").read_text().split("\n", 3)
    source = f'hdf5_data_param {{ source: "a.txt" batch_size: 2 shuffle: {str(shuffle).lower()} }}'
    (folder / "net.prototxt").write_text(
        f'layer {{ name: "d" type: "HDF5Data" top: "data" top: "label" {source} }}\n{text[3]}'
    )


@BAD_VALUE
@pytest.mark.parametrize("shuffle", [False, True])
def test_values_that_are_not_finite_in_hdf5(value: float, shuffle: bool, here: Path) -> None:
    put_h5(here, value, shuffle)
    (error,) = check_file("solver.prototxt").errors
    assert error.startswith(f"a.h5: dataset 'data', row 5: {value:g}; expected finite values")
    put_h5(here, 2.0, shuffle)
    assert check_file("solver.prototxt").errors == []


def test_what_is_said_of_the_data(here: Path, run_cli: RunCli) -> None:
    put_h5(here, np.nan)
    bad = run_cli("check", "solver.prototxt", cwd=here)
    (problem,) = [line for line in bad.stdout.splitlines() if line.startswith("problem: ")]
    assert bad.returncode == 1 and problem.startswith("problem: a.h5: dataset 'data', row 5: nan; expected")
    put_h5(here, 1.0)
    good = run_cli("check", "solver.prototxt", cwd=here)
    assert good.returncode == 0 and "TRAIN data 'd'  all 8 records read, all fine\n" in good.stdout


@BAD_VALUE
@pytest.mark.parametrize("records", [1, 6, 7, 1000])
def test_values_that_are_not_finite_in_a_database(value: float, records: int, here: Path) -> None:
    images = np.ones((9, 1, 4, 5), np.float32)
    images[6, 0, 3, 2] = value
    put_lmdb(here / "floats", [(b"%d" % number, raw(image)) for number, image in enumerate(images)])
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text.replace('"db"', '"floats"').replace("batch_size: 4", "batch_size: 3"))
    report = check_file("net.prototxt", Options(records=records))
    told = f"floats: record '6': {value:g}"
    assert [error.partition(";")[0] for error in report.errors] == ([told] if records > 6 else [])


def test_a_scale_beyond_float32(here: Path) -> None:
    (here / "net.prototxt").write_text(
        (here / "net.prototxt").read_text().replace("data_param", "transform_param { scale: 3e38 } data_param", 1)
    )
    (error,) = check_file("net.prototxt").errors
    assert "layer 'd': batch 0 of blob 'data': nan or inf; expected finite values" in error


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
    assert any("no weight has force_mult: NOTHING IS REGULARIZED" in text for text in report.warnings)
    for param in ("param { lr_mult: 0 force_mult: 1 }", "param { } param { force_mult: 1 }"):
        put_net(here, more=param)
        report = check_file("solver.prototxt")
        assert any("at what doesn't learn or is a bias (ip): NOTHING" in text for text in report.warnings)
        assert report.facts["force"] == "Degradation 0.1 on nothing"
    put_net(here, more="param { force_mult: 1 }")
    report = check_file("solver.prototxt")
    assert report.warnings == [] and report.facts["force"] == "Degradation 0.1 on ip"


@pytest.mark.parametrize("second", ["param { force_mult: 1 }", ""])
def test_force_on_a_chain(second: str, here: Path) -> None:
    """On all parts, as decompose copies it, it is told; what somebody gave one part alone is meant."""
    inner = """layer { name: "ip_lowrank" type: "InnerProduct" bottom: "data" top: "low" param { force_mult: 1 }
      inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }"""
    put_net(here, inner, more=second)
    text = (
        (here / "net.prototxt")
        .read_text()
        .replace('"ip" type: "InnerProduct" bottom: "data"', '"ip_linear" type: "InnerProduct" bottom: "low"')
    )
    (here / "net.prototxt").write_text(text)
    report = edited(here, ("max_iter", "force_decay: 0.1 max_iter"))
    told = [f"{here}/solver.prototxt: the force acts on ip_lowrank, ip_linear, the parts of decomposed layers"]
    assert [warning.partition(", and lowers")[0] for warning in report.warnings] == (told if second else [])


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


@pytest.mark.parametrize(
    ("batches", "seen"),
    [
        (3, "12 of 20 records"),
        (5, None),
        (6, "its 20 records 1.2 times"),
        (10, "its 20 records 2 times"),
    ],
)
def test_a_test_that_does_not_see_every_record_once(batches: int, seen: str | None, here: Path) -> None:
    report = edited(here, ("test_iter: 5", f"test_iter: {batches}"))
    assert report.warnings == ([f"test net #0 sees {seen} a test (test_iter {batches})"] if seen else [])


def test_a_last_batch_that_goes_round_is_no_mistake(here: Path) -> None:
    put_lmdb(here / "db", [(b"last", numbered(1)[0][1])])  # 21 records: the sixth batch has one of them
    assert edited(here, ("test_iter: 5", "test_iter: 6")).warnings == []
    assert edited(here).warnings == ["test net #0 sees 20 of 21 records a test (test_iter 5)"]


POLICIES = [
    'lr_policy: "fixed"',
    'lr_policy: "step" gamma: 0.1 stepsize: 3',
    'lr_policy: "exp" gamma: 0.75',
    'lr_policy: "inv" gamma: 0.25 power: 0.75',
    'lr_policy: "poly" power: 1.5',
    'lr_policy: "sigmoid" gamma: -0.5 stepsize: 4',
    *(f'lr_policy: "multistep" gamma: 0.1 {steps}' for steps in (
        "stepvalue: 0", "stepvalue: 9", "stepvalue: 8 stepvalue: 4", "stepvalue: 4 stepvalue: 8", "stepvalue: 10",
        "stepvalue: 9 stepvalue: 9", "stepvalue: 7 stepvalue: 7 stepvalue: 7 stepvalue: 7",
    )),
]  # fmt: skip


@pytest.mark.parametrize("text", POLICIES)
def test_rates_are_those_of_training(text: str, here: Path) -> None:
    usual = SOLVER[: SOLVER.index("lr_policy")]
    (here / "solver.prototxt").write_text(f"{usual} {text} max_iter: 10 display: 1 snapshot_after_train: false")
    recorder = Recorder()
    Solver("solver.prototxt", observers=[recorder]).solve()
    rates = [event.rate for event in recorder.of("rate")]
    told = check_file("solver.prototxt").facts["learning rate"]
    assert len(rates) == 10 and told.endswith(f": {rates[0]:g} at first, {rates[-1]:g} at last")


@settings(max_examples=60)
@given(steps=st.lists(st.integers(0, 12), max_size=6), at=st.integers(0, 20), step=st.integers(0, 3))
def test_steps_reached_are_those_of_the_loop(steps: list[int], at: int, step: int) -> None:
    p = parse_solver('lr_policy: "multistep"' + "".join(f" stepvalue: {value}" for value in steps)).message
    wanted = step
    for iteration in range(at + 1):
        wanted = policy.advance(p, iteration, wanted)
    assert policy.reached(p, at, step) == wanted


MULTISTEP = ('lr_policy: "step"', 'lr_policy: "multistep"')


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([("max_iter: 40\n", "")], "max_iter is missing, so it is 0"),
        ([("test_iter: 5\n", "")], "test_interval is 20, but test_iter is missing: nothing"),
        ([("snapshot: 20", "snapshot_after_train: false")], "no snapshot is written"),
        ([("snapshot: 20", "snapshot: 50 snapshot_after_train: false")], "no snapshot is written"),
        ([MULTISTEP], "has no stepvalue, so the learning rate never changes"),
        ([MULTISTEP, ("stepsize: 10", "stepvalue: 20 stepvalue: 10")], "stepvalue 10 stands behind 20; steps are"),
        ([MULTISTEP, ("stepsize: 10", "stepvalue: 20 stepvalue: 20")], "stepvalue 20 stands behind 20"),
        ([MULTISTEP, ("stepsize: 10", "stepvalue: 20 stepvalue: 40")], "stepvalue 40 is never reached: max_iter is 40"),
        ([("stepsize: 10", "stepsize: 10 stepvalue: 20")], 'lr_policy "step" doesn\'t look at stepvalue'),
        ([MULTISTEP, ("stepsize: 10", "stepvalue: 20 stepvalue: 39")], None),
        ([("max_iter: 40", "max_iter: 40 momentum: 1")], "momentum is 1: from 1 on updates grow by themselves"),
        ([("base_lr: 0.1", "base_lr: -0.1")], "base_lr is -0.1: a negative rate makes the loss grow"),
        ([("max_iter: 40", "max_iter: 40 weight_decay: 30")], "weight_decay is 30: times base_lr (it is 0.1) it takes"),
        ([("max_iter: 40", "max_iter: 40 weight_decay: 10 momentum: 0.99")], None),
        ([("test_iter: 5\ntest_interval: 20\n", "")], None),
        ([("snapshot: 20\n", "")], None),
    ],
)
def test_likely_mistakes(changes: list[tuple[str, str]], says: str | None, here: Path) -> None:
    report = edited(here, *changes)
    assert report.errors == []
    assert [says in text for text in report.warnings] == [True] if says else report.warnings == []


def test_impossible_schedules_are_problems_only(here: Path) -> None:
    report = edited(here, ("stepsize: 10\n", ""))
    assert any("stepsize is 0" in error for error in report.errors) and "learning rate" not in report.facts


def test_a_large_blob_that_nobody_reads(here: Path) -> None:
    param = "convolution_param { num_output: 9 kernel_size: 1 }"
    inner = f'layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" {param} }}'
    put_net(here, inner)
    (train, test) = check_file("solver.prototxt").warnings
    assert "net.prototxt:4: layer 'c': no layer of the training net reads blob 'c' (4x9x4x5)" in train
    assert "all its 720 values are shown" in train and "of the test net" in test
    assert check_file("net.prototxt").warnings == []  # a net without a solver is for its outputs
    put_net(here, f'{inner} layer {{ name: "s" type: "Silence" bottom: "c" }}')
    assert check_file("solver.prototxt").warnings == []


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


MANY = """name: "many"
frce_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_ouput: 4 kernel_size: 3 foo: 1 }
  bn_param { eps: 1 } }
layer { name: "bn1" type: "BN" bottom: "conv1" top: "bn1" bn_param { eps: 1 } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" include { phase: TRAIN }
  pooling_param { kernel_size: 1.5 stride: 2 }
layer { name: "pool2" type: "Pooling" bottom: "pool" top: "pool2" pooling_param { kernel_size = 2 } }
layer { name: "roi" type: "ROIPooling" bottom: "data" top: "roi" roi_pooling_param { pooled_w: 7 } }
layer { name: "twice" name: "x" type: "ReLU" bottom: "data" top: "t" }
layer { name: "relu" type: "ReLU" bottom: "date" top: "r" }
name: "again"
"""
TOLD = (
    """:2:1: 'frce_backward' is no field of NetParameter; did you mean "force_backward"?""",
    """:5:23: 'num_ouput' is no field of ConvolutionParameter; did you mean "num_output"?""",
    """:5:51: 'foo' is no field of ConvolutionParameter""",
    """:6:3: 'bn_param' is no field of Caffe's, it is of SegNet's fork; layer 'conv1' has type Convolution""",
    """:9:32: found '1.5', expected an integer for 'kernel_size'""",
    """:9:46: the block opened in line 8 is never closed; add a }""",
    """:10:95: found '='; write kernel_size: VALUE""",
    """:12:29: 'name' is set twice in one LayerParameter; remove one""",
    """:14:7: 'name' is set twice in one NetParameter; remove one""",
    """:13: layer 'relu': unknown bottom blob 'date'; did you mean "data"?""",
    """:7: layer 'bn1': unknown layer type 'BN'; `forcereg layers` lists""",
    """:11: layer 'roi': unknown layer type 'ROIPooling'; `forcereg layers` lists""",
)


def test_every_problem_of_a_net(here: Path) -> None:
    (here / "net.prototxt").write_text(MANY)
    report = check_file("net.prototxt")
    assert sorted(error[: len(told) + 12] for error, told in zip(report.errors, TOLD, strict=True)) == sorted(
        f"net.prototxt{told}" for told in TOLD
    )
    assert any(text.startswith("TEST net: 2 layers (bn1, relu) lie behind the problems") for text in report.warnings)


def test_every_problem_of_a_solver_and_its_net(here: Path) -> None:
    (here / "net.prototxt").write_text(MANY)
    (here / "solver.prototxt").write_text(
        'net: "net.prototxt"\nbase_lr: 0.1\nstagelr: 3\nlr_policy: "fixed"\nmax_iter: 0.5.3\n'
        "min_lr: 0.1 gama: 1\nmomentum = 0.9\nroi_pooling_param { a: 1 }\nsnapshot: 10\n"
    )
    errors = check_file("solver.prototxt").errors
    own = [error.removeprefix("solver.prototxt:") for error in errors if error.startswith("solver.prototxt:")]
    assert [error.split(":")[0] for error in own] == ["3", "5", "6", "6", "7", "8"]
    assert own[0].startswith("3:1: 'stagelr' is a field of Convolutional Pose Machines: for lr_policy \"multifixed\";")
    assert own[1:2] + own[3:] == [
        "5:11: found '0.5.3', expected an integer for 'max_iter'",
        "6:13: 'gama' is no field of SolverParameter; did you mean \"gamma\"?",
        "7:10: found '='; write momentum: VALUE",
        "8:1: 'roi_pooling_param' is no field of SolverParameter",
    ]
    assert own[2].startswith("6:1: 'min_lr' is a field of NVCaffe: a lower bound of the rate")
    assert all(any(f"net.prototxt{told}" in error for error in errors) for told in TOLD if "bottom blob" not in told)


def test_more_problems_than_are_told(here: Path) -> None:
    (here / "net.prototxt").write_text("layer { type: 'ReLU' foo: 1 }\n" * 150)
    errors = check_file("net.prototxt").errors
    assert len(errors) == 101
    assert errors[-1] == "net.prototxt: has more than 100 problems, of which the first are told"


def test_an_unknown_type_is_told_beside_an_unknown_field(here: Path) -> None:
    (here / "net.prototxt").write_text('layer { name: "q" type: "Mine" top: "q" incldue { phase: TRAIN } }')
    field, kind = check_file("net.prototxt").errors
    assert "'incldue' is no field" in field and "layer 'q': unknown layer type 'Mine'" in kind


def test_which_files_are_solvers(here: Path) -> None:
    assert looks_like_solver("solver.prototxt") and not looks_like_solver("net.prototxt")
    with pytest.raises(ForceregError, match="no such file"):
        looks_like_solver("none.prototxt")
    for file in shipped_configs():
        assert looks_like_solver(configs_dir() / file.path) == (file.kind == "solver")
