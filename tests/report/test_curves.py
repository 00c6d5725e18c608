"""Curves from logs: Caffe's own lines of both trees, ours, and JSON events."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.report.curves import read_run
from forcereg.report.points import Run

CAFFE = """\
WARNING: Logging before InitGoogleLogging() is written to STDERR
I0612 10:11:12.123456  4711 caffe.cpp:204] Using CPU.
I0612 10:11:12.223456  4711 solver.cpp:294] Solving LeNet
I0612 10:11:12.323456  4711 solver.cpp:351] Iteration 0, Testing net (#0)
I0612 10:11:13.323456  4711 solver.cpp:418]     Test net output #0: accuracy = 0.0989
I0612 10:11:13.323456  4711 solver.cpp:418]     Test net output #1: loss = 2.31 (* 1 = 2.31 loss)
I0612 10:11:13.323457  4711 solver.cpp:351] Iteration 0, Testing net (#1)
I0612 10:11:13.323458  4711 solver.cpp:400] Test loss: 2.5
I0612 10:11:13.323459  4711 solver.cpp:418]     Test net output #0: accuracy = 1e-05
I0612 10:11:13.423456  4711 solver.cpp:239] Iteration 0 (0 iter/s, 0.1s/100 iters), loss = 2.40197
I0612 10:11:13.423456  4711 solver.cpp:258]     Train net output #0: loss = 2.40197 (* 1 = 2.40197 loss)
I0612 10:11:13.423456  4711 sgd_solver.cpp:112] Iteration 0, lr = 0.01
I0612 10:11:14.423456  4711 solver.cpp:239] Iteration 100, loss = nan
I0612 10:11:14.423456  4711 sgd_solver.cpp:112] Iteration 100, lr = 0.00992565
"""


def written(folder: Path, text: str, name: str = "run.log") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_caffes_log(tmp_path: Path) -> None:
    run = read_run(written(tmp_path, CAFFE))
    assert run.name == "run"
    found = {name: list(zip(curve.iterations, curve.values, strict=True)) for name, curve in run.curves.items()}
    assert math.isnan(found["train loss"].pop()[1])
    assert found == {
        "test accuracy": [(0, 0.0989)],
        "test loss": [(0, 2.31)],
        "test #1 total loss": [(0, 2.5)],
        "test #1 accuracy": [(0, 1e-05)],
        "train loss": [(0, 2.40197)],
        "train output loss": [(0, 2.40197)],
        "lr": [(0, 0.01), (100, 0.00992565)],
    }


def test_an_8_digit_date(tmp_path: Path) -> None:
    """Recent glog prints one, which breaks Caffe's own parser."""
    run = read_run(written(tmp_path, CAFFE.replace("I0612", "I20260612")))
    assert run.curves["lr"].iterations == [0, 100]


def test_a_run_that_was_resumed_replaces_what_it_did_again() -> None:
    run = Run("r")
    for iteration, value in [(0, 1.0), (100, 2.0), (200, 3.0), (100, 4.0), (200, 5.0)]:
        run.add("lr", iteration, value)
    assert (run.curves["lr"].iterations, run.curves["lr"].values) == ([0, 100, 200], [1.0, 4.0, 5.0])


def test_an_early_end_counts_until_the_run_goes_on() -> None:
    """In the same log, or in the next one."""
    run, next_one = Run("run"), Run("next")
    run.add("train loss", 5, 1.0)
    run.stopped(10, "enough")
    assert run.ended == "stopped early at iteration 10: enough"
    next_one.add("train loss", 10, 0.5)
    run.go_on(next_one)
    assert not run.ended
    run.stopped(20, "enough")
    run.add("train loss", 20, 0.4)
    assert not run.ended


def test_what_was_done_again_goes_from_every_curve(tmp_path: Path) -> None:
    """Also from those that the resumed run has no point of yet."""
    lines = [f"Iteration {n}, loss = {n}" for n in (0, 100, 200)]
    lines += ["Iteration 200, Testing net (#0)", "    Test net output #0: accuracy = 0.5", "Iteration 100, loss = 7"]
    run = read_run(written(tmp_path, "".join(f"I0612 10:11:12.123456  4711 solver.cpp:1] {line}\n" for line in lines)))
    assert set(run.curves) == {"train loss"}
    assert run.curves["train loss"].values == [0, 7]


def test_outputs_of_several_elements(tmp_path: Path) -> None:
    """Accuracy's second top has one for every class, all with its name."""
    outputs = ["accuracy = 0.5", "each = 0.1", "each = 0.2", "each = 0.3", "loss = 2 (* 1 = 2 loss)"]
    lines = [
        line
        for n in (0, 500)
        for line in (
            f"Iteration {n}, Testing net (#0)",
            *(f"    Test net output #{index}: {output}" for index, output in enumerate(outputs)),
        )
    ]
    run = read_run(written(tmp_path, "".join(f"I0612 10:11:12.123456  4711 solver.cpp:1] {line}\n" for line in lines)))
    assert {name: curve.values for name, curve in run.curves.items()} == {
        "test accuracy": [0.5, 0.5],
        "test each[0]": [0.1, 0.1],
        "test each[1]": [0.2, 0.2],
        "test each[2]": [0.3, 0.3],
        "test loss": [2, 2],
    }
    event = {"event": "test", "iteration": 0, "net": 0}
    event["outputs"] = [{"name": "each", "value": value} for value in (0.1, 0.2)]
    assert set(read_run(written(tmp_path, json.dumps(event))).curves) == {"test each[0]", "test each[1]"}


@pytest.mark.parametrize("change", [gzip.compress, lambda data: data.replace(b"\n", b"\r\n")], ids=["gzip", "crlf"])
def test_the_same_log_in_other_forms(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = written(tmp_path, CAFFE)
    before = read_run(path)
    path.write_bytes(change(path.read_bytes()))
    assert str(read_run(path)) == str(before)


def test_a_compressed_log_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run.log.gz"
    path.write_bytes(gzip.compress(CAFFE.encode())[:-20])
    with pytest.raises(ForceregError, match="cannot be read \\(Compressed file ended"):
        read_run(path)


def test_json_events(tmp_path: Path) -> None:
    events = [
        {"event": "start", "net": "LeNet"},
        {"event": "train", "iteration": 0, "loss": 2.5, "outputs": [{"name": "loss", "value": 2.5}]},
        {"event": "rate", "iteration": 0, "rate": 0.1},
        {"event": "test", "iteration": 0, "net": 1, "outputs": [{"name": "accuracy", "value": 0.5}]},
        {"event": "force", "iteration": 0, "layers": [{"layer": "conv1", "rank": 12, "cosine": 0.25}]},
    ]
    text = "\n".join(map(json.dumps, events)) + '\n{"event": "tra'
    run = read_run(written(tmp_path, text, "run.json"))
    assert {name: curve.values for name, curve in run.curves.items()} == {
        "train loss": [2.5],
        "train output loss": [2.5],
        "lr": [0.1],
        "test #1 accuracy": [0.5],
        "conv1 rank": [12],
        "conv1 cosine": [0.25],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no line like 'Iteration 100, loss = 0.5'"),
        ("nothing of the kind", "holds no line like"),
        ('{"event": "rate", "iteration": 1, "rate": 1}\n{{\n{}', ":2: is no JSON object"),
        ('{"event": "rate", "iteration": 1, "rate": 1}\n[1]', ":2: is no event"),
        ('{"event": "rate", "iteration": 1}', ":1: is no event"),
        ('{"event": "train", "iteration": 1, "loss": "none", "outputs": []}', ":1: is no event"),
    ],
)
def test_other_files(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=says):
        read_run(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=r"none.log: cannot be read \(No such file or directory\)"):
        read_run(tmp_path / "none.log")


LINE = "I0612 10:11:14.423456  4711 solver.cpp:239] Iteration 100, loss = 0.5\n"


@pytest.mark.parametrize(
    ("before", "curves"),
    [
        ("Iteration 0, loss = 1.2.3", 1),
        ("Iteration " + "9" * 5000 + ", loss = 1", 1),
        ("Iteration 2147483648, loss = 1", 1),
        ("Iteration 0, rank of conv1 = " + "9" * 5000, 1),
        ("Iteration 0, Testing net (#" + "9" * 5000 + ")", 1),
        ("Iteration 0, loss = " + "9" * 5000, 2),
        ("Iteration 0, loss = 1\0", 1),
        ("x" * 10_000_000, 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_lines_that_are_none(before: str, curves: int, tmp_path: Path) -> None:
    run = read_run(written(tmp_path, LINE.replace("Iteration 100, loss = 0.5", before) + LINE))
    assert len(run.curves["train loss"].values) == curves and run.curves["train loss"].values[-1] == 0.5


@pytest.mark.parametrize("change", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
def test_a_long_line_in_pieces(
    change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forcereg.report.lines.PIECE", 7)
    monkeypatch.setattr("forcereg.report.lines.LONGEST", 100)
    (tmp_path / "x").write_bytes(change((LINE + "y" * 1000 + LINE + "\n" + LINE.replace("100", "200")).encode()))
    assert read_run(tmp_path / "x").curves["train loss"].iterations == [100, 200]


def test_a_compressed_log_with_too_much_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forcereg.report.lines.UNPACKED", 1 << 20)
    (tmp_path / "x.gz").write_bytes(gzip.compress(LINE.encode() + bytes(3 << 20)))
    with pytest.raises(ForceregError, match=r"x\.gz: unpacked it has more than 1 MiB; give a part of it"):
        read_run(tmp_path / "x.gz")


def test_many_elements_are_one_spread(tmp_path: Path) -> None:
    start = "I0612 10:11:14.423456  4711 solver.cpp:239] "
    text = ""
    for n in (0, 100):
        values = [n / 100 + index / 1000 for index in range(1000)]
        outputs = [f"{start}    Test net output #{index}: each = {value}\n" for index, value in enumerate(values)]
        text += f"{start}Iteration {n}, Testing net (#0)\n{''.join(outputs)}"
    run = read_run(written(tmp_path, text))
    assert {name: curve.values for name, curve in run.curves.items()} == {
        "test each mean": pytest.approx([0.4995, 1.4995]),
        "test each least": [0, 1],
        "test each most": [0.999, 1.999],
    }
    assert run.remarks == ["run: 'test each' has 1,000 elements; drawn are their mean, least and most"]
    event = {"event": "test", "iteration": 0, "net": 0, "outputs": [{"name": "each", "value": 1.0}] * 1000}
    assert set(read_run(written(tmp_path, json.dumps(event))).curves) == {*run.curves}


def test_more_curves_than_a_picture_shows(tmp_path: Path) -> None:
    text = "".join(LINE.replace("loss", f"rank of layer{n}").replace("0.5", "5") for n in range(2001))
    with pytest.raises(ForceregError, match="has more than 2,000 curves"):
        read_run(written(tmp_path, text))
