"""What released versions wrote is read by this one, and means the same; see forcereg/snapshot/README.md."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import forcereg
from forcereg.lowrank.accuracy import Point
from forcereg.report import series
from forcereg.snapshot import StateFile, fingerprint, read, read_model, read_state
from forcereg.study import frontier_report, sweep_report
from tests.conftest import RunCli
from tests.snapshot.frozen.make import HERE, STATES, numbers, schema

VERSIONS = sorted(path.name for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())
LARGEST = 200_000  # bytes of all files of a version


@pytest.fixture(params=VERSIONS)
def frozen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a version's files, which is the working directory."""
    folder = tmp_path / "frozen"
    shutil.copytree(HERE / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return list(csv.DictReader(lines))


def test_every_released_version_has_its_files() -> None:
    assert forcereg.__version__ in VERSIONS or not forcereg.__version__[0].isdigit()
    for version in VERSIONS:
        assert sum(path.stat().st_size for path in (HERE / version).rglob("*") if path.is_file()) < LARGEST


@pytest.mark.parametrize("state", STATES)
def test_training_goes_on_to_the_numbers_of_then(state: str, frozen: Path) -> None:
    then, now = json.loads((frozen / "numbers.json").read_text())[state], numbers(frozen, state)
    assert now["losses"] == pytest.approx(then["losses"], rel=1e-3)
    assert now["sums"].keys() == then["sums"].keys()
    for blob, sums in then["sums"].items():
        assert now["sums"][blob] == pytest.approx(sums, rel=1e-3, abs=1e-5), blob


def test_every_snapshot_is_read(frozen: Path) -> None:
    paths = [path for path in frozen.iterdir() if ".caffemodel" in path.name or ".solverstate" in path.name]
    files = {path.name: read(path) for path in paths}
    states = [file for file in files.values() if isinstance(file, StateFile)]
    assert len(states) == 3 and len(files) == 8
    for state in states:
        assert state.iteration == 4 and state.goes_with(read_model(frozen / state.learned_net))


def test_a_model_is_the_same_in_both_formats(frozen: Path) -> None:
    text, binary = (read_model(frozen / f"sgd_iter_4.caffemodel{ending}") for ending in (".h5", ""))
    assert fingerprint(text.layers) == fingerprint(binary.layers)
    assert text.attrs == binary.attrs
    for layer, blobs in text.diffs.items():
        for index, values in blobs.items():
            assert np.array_equal(values, binary.diffs[layer][index])


def test_models_tell_where_they_come_from(frozen: Path) -> None:
    attrs = read_model(frozen / "chain.caffemodel.h5").attrs
    assert attrs["forcereg_version"] == frozen_version(frozen)
    assert attrs["forcereg_seed"] == "1"
    assert json.loads(attrs["forcereg_input_shapes"]) == {"data": [4, 2, 5, 5], "label": [4]}
    assert "base_lr: 0.05" in attrs["forcereg_solver"] and "conv_lowrank" in attrs["forcereg_net"]
    (made,) = json.loads(attrs["forcereg_decomposed"])
    assert {"snapshot", "version", "layers"} <= made.keys()
    assert {"name", "method", "full_rank", "rank", "ranks", "widths", "error"} <= made["layers"][0].keys()


def frozen_version(folder: Path) -> str:
    with h5py.File(folder / "sgd_iter_4.caffemodel.h5") as file:
        return str(file.attrs["forcereg_version"])


def test_hdf5_files_have_the_layout_that_the_page_tells(frozen: Path) -> None:
    with h5py.File(frozen / "sgd_iter_4.caffemodel.h5") as file:
        assert {*file} == {"data", "diff"}
        assert {name: {*file["data"][name]} for name in ("conv", "ip", "loss")} == {
            "conv": {"0", "1"}, "ip": {"0"}, "loss": set(),
        }  # fmt: skip
        assert file["data/conv/0"].dtype == np.float32 and file["data/conv/0"].shape == (6, 2, 3, 3)
    with h5py.File(frozen / "clipped_iter_4.solverstate.h5") as file:
        assert {*file} == {"iter", "current_step", "learned_net", "history", "forcereg"}
        assert (file["iter"].dtype, file["iter"].shape) == (np.int32, (1,))
        assert file["learned_net"].dtype.kind == "S"
        assert [*file["history"]] == [str(index) for index in range(7)]
    for name in ("sgd_iter_4.caffemodel.h5", "sgd_iter_4.caffemodel", *STATES):
        assert (frozen / name).read_bytes()[-16:-8] == b"forcereg"


def test_a_net_is_made_of_its_model(frozen: Path) -> None:
    net = forcereg.load_net("chain.prototxt", "chain.caffemodel.h5", phase="TEST", seed=1)
    whole = forcereg.load_net("small.prototxt", "sgd_iter_4.caffemodel", phase="TEST", seed=1)
    assert torch.allclose(net()["loss"], whole()["loss"], atol=1e-4)


def test_rank_clipping_and_the_loss_scale_go_on(frozen: Path, run_cli: RunCli) -> None:
    options = ("--rank-clipping", "0.9", "--amp", "fp16", "--max-iter", "6", "--log-json", "more.jsonl")
    done = run_cli(
        "train", "--solver", "clipped.prototxt", "--snapshot", "clipped_iter_4.solverstate.h5", *options, cwd=frozen
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (frozen / "more.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "scale")
    assert (first["iteration"], first["good"]) == (4, 4)
    assert next(event for event in events if event["event"] == "ranks")["layers"][0]["rank"] <= 5
    state = read_state(frozen / "clipped_iter_6.solverstate.h5")
    assert state.extra is not None and state.extra["clipped"] == 4


def test_a_log_is_plotted_as_then(frozen: Path, run_cli: RunCli) -> None:
    done = run_cli("plot", "sgd.jsonl", "clipped.jsonl", "failed.jsonl", "-o", "now.csv", cwd=frozen)
    assert done.returncode == 0, done.stderr
    found = {tuple(row.values()) for row in rows(frozen / "now.csv")}
    assert found >= {tuple(row.values()) for row in rows(frozen / "curves.csv")}


def test_csv_columns_of_then_are_still_there(frozen: Path) -> None:
    now: dict[str, Callable[[], set[str]]] = {
        "sweep/results.csv": lambda: {"setting", "force_decay", "seed", *sweep_report.COLUMNS},
        "frontier.csv": lambda: {*frontier_report.COLUMNS},
        "sensitivity.csv": lambda: {field.name for field in fields(Point)},
        "curves.csv": lambda: {*series.COLUMNS},
    }
    for name, columns in now.items():
        assert rows(frozen / name)[0].keys() <= columns(), name


def test_a_sweep_of_then_goes_on_or_is_refused(frozen: Path, run_cli: RunCli) -> None:
    call = ("--ranks", "2", "--finetune", "2", "--device", "cpu", "--out", "sweep")
    done = run_cli("sweep", "--solver", "sgd.prototxt", "--set", "force_decay=0,0.01", *call, cwd=frozen)
    if frozen_version(frozen) == forcereg.__version__:
        assert (done.returncode, done.stderr.count("done before")) == (0, 2), done.stderr
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("forcereg: sweep/"), done.stderr


def test_no_field_of_the_schema_has_changed(frozen: Path) -> None:
    now: dict[str, set[str]] = {words[0]: {*words[1:]} for words in map(str.split, schema())}
    for line in (frozen / "schema.txt").read_text().splitlines():
        message, *then = line.split()
        assert {*then} <= now[message], message


def finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def test_logs_are_strict_json(frozen: Path) -> None:
    for path in frozen.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            assert isinstance(event["event"], str) and isinstance(event["time"], float)
            assert all(map(finite, event.values()))
