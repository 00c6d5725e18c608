"""Confusion matrices: every record once, whatever the batches, and as an Accuracy layer judges."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.snapshot import write_model
from forcereg.study.confusion import Confusion, class_names, compared, confusion
from forcereg.study.confusion_report import as_csv, class_table, pair_table, picture, titles, worst
from tests.conftest import RunCli

DATA = 'layer { name: "d" type: "HDF5Data" top: "s" top: "l" hdf5_data_param { source: "list.txt" batch_size: %d } }\n'
ACCURACY = 'layer { name: "acc" type: "Accuracy" bottom: "s" bottom: "l" top: "acc" %s }\n'


def stored(folder: Path, scores: np.ndarray, labels: np.ndarray) -> Path:
    """A data set of scores and labels, for a net that hands the scores on."""
    with h5py.File(folder / "d.h5", "w") as file:
        file["s"], file["l"] = scores.astype(np.float32), labels.astype(np.float32)
    (folder / "list.txt").write_text(str(folder / "d.h5"))
    return folder


def built(folder: Path, text: str) -> Net:
    return load_net(text.replace('"list.txt"', f'"{folder / "list.txt"}"'))


def counted(scores: np.ndarray, labels: np.ndarray, ignore: int | None = None) -> tuple[np.ndarray, int]:
    """One by one: scores (N, C, ...), labels (N, ...)."""
    classes = scores.shape[1]
    rows = np.moveaxis(scores, 1, -1).reshape(-1, classes)
    counts, ignored = np.zeros((classes, classes + 1), np.int64), 0
    for row, label in zip(rows, labels.reshape(-1).astype(int), strict=True):
        if label == ignore:
            ignored += 1
        elif np.isnan(row).any():
            counts[label, classes] += 1
        else:
            others = np.delete(np.arange(classes), label)
            is_right = all(row[other] < row[label] for other in others)
            counts[label, label if is_right else others[row[others].argmax()]] += 1
    return counts, ignored


@settings(max_examples=40)
@given(
    count=st.integers(1, 13), batch=st.integers(1, 6), classes=st.integers(1, 4), seed=st.integers(0, 99),
    spatial=st.booleans(), ignore=st.sampled_from([None, 0, 255]),
)  # fmt: skip
def test_each_record_once(
    count: int, batch: int, classes: int, seed: int, spatial: bool, ignore: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Small whole numbers as scores, so that many tie, some nan; sets that batches don't divide."""
    chance = np.random.default_rng(seed)
    scores = chance.integers(-2, 3, (count, classes, *((2, 3) if spatial else ()))).astype(np.float32)
    scores[chance.random(scores.shape) < 0.05] = np.nan
    labels = chance.integers(0, classes, (count, *((2, 3) if spatial else ())))
    if ignore is not None:
        labels[chance.random(labels.shape) < 0.3] = ignore
    folder = stored(tmp_path_factory.getbasetemp(), scores, labels)
    body = "" if ignore is None else f"accuracy_param {{ ignore_label: {ignore} }}"
    net = built(folder, DATA % batch + ACCURACY % body)
    found = confusion(net)
    counts, ignored = counted(scores, labels, ignore)
    assert (found.counts.tolist(), found.ignored) == (counts.tolist(), ignored)
    assert (found.batches, found.records, found.layer) == (-(-count // batch), count, "acc")
    if count % batch == 0 and ignored == 0:
        with torch.no_grad():
            mean = np.mean([float(net()["acc"]) for _ in range(count // batch)])
        assert found.accuracy == pytest.approx(mean, abs=1e-6)


def test_another_axis(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, (3, 4))
    net = built(stored(tmp_path, scores, labels), DATA % 2 + ACCURACY % "accuracy_param { axis: 2 }")
    assert confusion(net).counts.tolist() == counted(np.moveaxis(scores, 2, 1), labels)[0].tolist()


def test_a_batchs_mean_misleads(tmp_path: Path) -> None:
    """Sorted by class, as many sets are: all are right, and a mean over batches of each class's accuracy says half."""
    labels = np.array([0, 0, 1, 1])
    text = DATA % 2 + 'layer { name: "acc" type: "Accuracy" bottom: "s" bottom: "l" top: "acc" top: "each" }'
    net = built(stored(tmp_path, np.eye(2)[labels], labels), text)
    assert torch.stack([net()["each"] for _ in range(2)]).mean(0).tolist() == [0.5, 0.5]
    assert confusion(net).accuracies == [1, 1]


def test_batches_that_are_asked_for_count_whole(tmp_path: Path) -> None:
    net = built(stored(tmp_path, np.eye(3), np.arange(3)), DATA % 2 + ACCURACY % "")
    found = confusion(net, 3)
    assert (found.items.tolist(), found.batches, found.records) == ([2, 2, 2], 3, None)


HEADS = DATA % 2 + "".join(
    f'layer {{ name: "{name}" type: "{kind}" bottom: "s" bottom: "l" top: "{name}" {more} }}\n'
    for name, kind, more in (
        ("loss1", "SoftmaxWithLoss", ""),
        ("top1", "Accuracy", ""),
        ("main", "Accuracy", ""),
        ("top2", "Accuracy", "accuracy_param { top_k: 2 }"),
        ("loss2", "SoftmaxWithLoss", ""),
    )
)


@pytest.mark.parametrize(
    ("gone", "layer", "found"),
    [
        pytest.param((), None, "main", id="last-top-1"),
        pytest.param(("top1", "main"), None, "top2", id="top-k"),
        pytest.param(("top1", "main", "top2"), None, "loss2", id="loss"),
        pytest.param((), "loss1", "loss1", id="by-name"),
    ],
)
def test_which_scores_count(gone: tuple[str, ...], layer: str | None, found: str, tmp_path: Path) -> None:
    lines = [line for line in HEADS.splitlines() if not any(f'"{name}"' in line for name in gone)]
    net = built(stored(tmp_path, np.eye(3), np.arange(3)), "\n".join(lines))
    assert compared(net, layer)[0].name == found == confusion(net, 1, layer).layer


INPUTS = (
    'layer { name: "i" type: "Input" top: "s" top: "l" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }\n'
)
DUMMY = INPUTS.replace("Input", "DummyData").replace("input_param", "dummy_data_param")
ACROSS = """
layer { name: "cut" type: "Slice" bottom: "s" top: "one" top: "rest" slice_param { slice_point: 1 } }
layer { name: "sum" type: "Reduction" bottom: "l" top: "sum" }
layer { name: "acc" type: "Accuracy" bottom: "one" bottom: "sum" top: "acc" accuracy_param { axis: 0 } }
"""
SECOND = DATA.replace('"d"', '"e"').replace('top: "s" top: "l"', 'top: "m"').replace("list.txt", "other.txt")


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        pytest.param(INPUTS + ACCURACY % "", None, r"reads no data \(input s, l; a net for use\?\)", id="no-data"),
        pytest.param(DUMMY + ACCURACY % "", None, "data layer 'i' has no number of records; give --iterations",
                     id="endless"),
        pytest.param(DATA % 2 + ACROSS, None, "haven't the 2 records of a batch on axis 0; give --iter", id="across"),
        pytest.param(DATA % 2, None, "has no layer that compares class scores with labels", id="no-scores"),
        pytest.param(DATA % 2 + ACCURACY % "", "ac", "no layer 'ac' compares scores with labels; did you mean \"acc\"",
                     id="name"),
        pytest.param(DATA % 2 + ACCURACY % "" + SECOND % 2, None, r"different records or batches \('d' 3, 'e' 5\)",
                     id="two"),
        pytest.param(DATA % 2 + ACCURACY % "" + SECOND % 3, None, "different records or batches", id="two-batches"),
    ],
)  # fmt: skip
def test_what_cannot_be(text: str, layer: str | None, message: str, tmp_path: Path) -> None:
    stored(tmp_path, np.eye(3), np.arange(3))
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["m"] = np.zeros((5, 2), np.float32)
    (tmp_path / "other.txt").write_text(str(tmp_path / "e.h5"))
    net = built(tmp_path, text.replace('"other.txt"', f'"{tmp_path / "other.txt"}"'))
    with pytest.raises(ForceregError, match=message):
        confusion(net, layer=layer)


# -- what is told


COUNTS = np.array([[8, 2, 0, 0], [0, 0, 0, 0], [3, 1, 6, 0]])


def made(counts: np.ndarray = COUNTS, **more: Any) -> Confusion:
    return Confusion(**{"counts": counts, "ignored": 0, "batches": 1, "records": 20, "layer": "acc", **more})


def test_numbers() -> None:
    found = made()
    assert found.accuracies == [0.8, None, 0.6] and found.accuracy == 0.7
    assert found.pairs() == [(2, 0, 3), (0, 1, 2), (2, 1, 1)] and found.pairs(1) == [(2, 0, 3)]
    assert np.isnan(made(np.zeros((3, 4), np.int64)).accuracy) and made(np.zeros((3, 4), np.int64)).pairs() == []


def test_tables_and_csv() -> None:
    called = titles(["cat", "=dog", "cow"], 3)
    rows = list(zip(*(column.cells for column in class_table(made(), called).columns), strict=True))
    assert [[cell for (cell,) in row] for row in rows] == [
        ["0 cat", "10", "8", "80.00%", "1 =dog (2)"],
        ["1 =dog", "0", "", "absent", ""],
        ["2 cow", "10", "6", "60.00%", "0 cat (3)"],
    ]
    pairs = list(zip(*(column.cells for column in pair_table(made(), called, 2).columns), strict=True))
    assert pairs[0] == (["2 cow"], ["0 cat"], ["3"], ["30.00%"]) and len(pairs) == 2
    read = list(csv.reader(io.StringIO(as_csv(made(), ["cat", "=dog", "cow"]))))
    assert read == [
        ["class", "name", "items", "accuracy", "0", "1", "2"],
        ["0", "cat", "10", "0.8", "8", "2", "0"],
        ["1", "'=dog", "0", "", "0", "0", "0"],
        ["2", "cow", "10", "0.6", "3", "1", "6"],
    ]
    lost = as_csv(made(np.array([[1, 0, 2], [0, 1, 0]])), None).splitlines()
    assert lost == ["class,name,items,accuracy,0,1,not a number", "0,,3,0.333333,1,0,2", "1,,1,1,0,1,0"]


def test_of_many_classes_the_worst_are_listed() -> None:
    counts = np.zeros((60, 61), np.int64)
    np.fill_diagonal(counts, np.arange(60))
    counts[np.arange(59), np.arange(1, 60)] = 60 - np.arange(59)
    found = worst(made(counts))
    assert len(found) == 40 and found[:3] == [0, 1, 2]
    counts[5] = 0
    assert 5 not in worst(made(counts)) and worst(made()) == [0, 1, 2]


@pytest.mark.parametrize("classes", [1, 3, 30, 100])
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures(kind: str, classes: int) -> None:
    pytest.importorskip("matplotlib")
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes + 1))
    image = picture(made(counts), titles(["$x$ <name>"] * classes, classes), kind)
    assert image.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_names_of_classes() -> None:
    lines = ["n01440764 tench, Tinca tinca", " cat ", "n02 is no synset", "n01440764", "", ""]
    assert class_names(lines, 4, "f") == ["tench", "cat", "n02 is no synset", "n01440764"]
    with pytest.raises(ForceregError, match="f: has 4 lines; expected one for each of 5 classes"):
        class_names(lines, 5, "f")


# -- the command


NET = (
    DATA % 4
    + 'layer { name: "ip" type: "InnerProduct" bottom: "s" top: "ip" inner_product_param { num_output: 3 } }\n'
    + 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "l" top: "acc" }\n'
    + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "l" top: "loss" }\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten records of classes 0 and 2, three of them taken for another, in batches of four; class 1 is absent."""
    labels = np.array([0, 0, 0, 0, 0, 0, 2, 2, 2, 2])
    scores = np.eye(3)[[0, 0, 0, 0, 0, 2, 2, 2, 1, 2]]
    scores[9] = np.nan
    stored(tmp_path, scores, labels)
    (tmp_path / "net.prototxt").write_text(NET)
    weights = {"ip": {0: np.eye(3, dtype=np.float32), 1: np.zeros(3, np.float32)}}
    write_model(tmp_path / "w.caffemodel.h5", weights)
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    return tmp_path


ARGS = ("confusion", "--model", "net.prototxt", "--weights", "w.caffemodel.h5")


def test_the_command(folder: Path, run_cli: RunCli) -> None:
    pytest.importorskip("matplotlib")
    done = run_cli(*ARGS, "--labels", "names.txt", "-o", "c.csv", "-o", "c.png", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert ["0", "cat", "6", "5", "83.33%", "2", "cow", "(1)"] in lines
    assert ["1", "dog", "0", "absent"] in lines
    assert ["2", "cow", "4", "2", "50.00%", "1", "dog", "(1)"] in lines
    assert done.stdout.splitlines()[-3:] == [
        "accuracy 70.0000%: 7 of 10 right, all 10 records, layer 'acc'",
        "1 have scores that aren't numbers, and count as wrong",
        "wrote c.csv and c.png",
    ]
    assert (folder / "c.csv").read_text().splitlines() == [
        "class,name,items,accuracy,0,1,2,not a number",
        "0,cat,6,0.833333,5,0,1,0",
        "1,dog,0,,0,0,0,0",
        "2,cow,4,0.5,0,1,2,1",
    ]
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")
    done = run_cli(*ARGS, "--iterations", "4", "--pairs", "0", cwd=folder)
    assert done.stderr == "forcereg: warning: 4 batches go round the 10 records: some count again\n"
    assert "16 right, 4 batches, layer 'acc'" in done.stdout and "taken for  " not in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param(("-o", "c.txt"), 2, "--out is 'c.txt'; expected a name that ends in .csv, .png, .svg, .pdf",
                     id="kind"),
        pytest.param(("-o", "gone/c.csv"), 1, "there is no folder", id="folder"),
        pytest.param(("--labels", "gone.txt"), 1, "--labels gone.txt cannot be read", id="no-names"),
        pytest.param(("--labels", "list.txt"), 1, "list.txt: has 1 lines; expected one for each of 3", id="few-names"),
        pytest.param(("--layer", "loss1"), 1, "no layer 'loss1' compares scores with labels; did you mean \"loss\"",
                     id="layer"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(
    args: tuple[str, ...], code: int, message: str, folder: Path, run_cli: RunCli
) -> None:
    done = run_cli(*ARGS, *args, cwd=folder)
    assert done.returncode == code and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(folder.glob("c.*"))
