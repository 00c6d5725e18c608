"""--log-json: one object a line for every event, whole lines whenever one looks, one file over several resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.report.curves import read_run
from forcereg.solver.jsonlog import JsonLog
from forcereg.system.events import Event
from tests.solver.nets import TESTED, batches, regression

EXTRA = (
    "test_iter: 1 test_interval: 2 test_compute_loss: true display: 2 max_iter: 4 snapshot: 2 average_loss: 2 "
    'snapshot_prefix: "s" lr_policy: "multistep" gamma: 0.5 stepvalue: 2 force_decay: 0.1 snapshot_format: HDF5'
)


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def logged(root: Path, path: Path, resume: Path | None = None, extra: str = EXTRA) -> None:
    """A run, or the rest of one, with `path` as its log."""
    solver, _ = regression(root, extra, params="param { force_mult: 1 }", net=TESTED)
    log = JsonLog(path)
    solver.observers.append(log)
    solver.measure_force = True
    if resume is not None:
        solver.restore(resume)
    else:
        values = {"ip": {0: np.ones((2, 3)), 1: np.zeros(2)}, "elsewhere": {0: np.zeros(1)}}
        snapshot.write_model(root / "start.h5", values)
        solver.load_weights(root / "start.h5")
    solver.warn("careful")
    solver.solve(batches)
    log.close()


def test_events_in_order_with_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    logged(tmp_path, path)
    found = objects(path)
    assert [one["event"] for one in found] == [
        *("weights", "warning", "start", "test_start", "test", "force", "train", "rate", "force"),
        *("snapshot", "saved", "test_start", "test", "force", "train", "step", "rate", "force"),
        *("snapshot", "saved"),
        *("final", "test_start", "test", "force", "done"),
    ]
    times = [one.pop("time") for one in found]
    assert times == sorted(times)
    first = {one["event"]: one for one in reversed(found)}
    report = {"loaded": ["ip"], "ignored": ["elsewhere"], "fresh": [], "remarks": []}
    assert first["weights"] == {"event": "weights", "file": str(tmp_path / "start.h5"), "report": report}
    assert first["warning"] == {"event": "warning", "text": "careful"}
    settings = first["start"].pop("settings")
    assert first["start"] == {"event": "start", "net": "regression", "policy": "multistep"}
    assert settings["base_lr"] == 0.1 and settings["solver_mode"] == "CPU" and settings["stepvalue"] == [2]
    (output,) = first["train"].pop("outputs")
    assert output == {"name": "loss", "value": first["train"]["loss"], "weight": 1.0}
    assert first["train"].keys() == {"event", "iteration", "loss", "rate", "speed", "seconds", "interval", "left"}
    assert first["test"].keys() == {"event", "net", "iteration", "outputs", "loss"}
    assert first["force"]["layers"][0].keys() == {"layer", "rank", "cosine"}
    assert first["snapshot"]["model"] == str(tmp_path / "s_iter_2.caffemodel.h5")
    assert first["step"] == {"event": "step", "iteration": 2, "current_step": 1}
    assert (first["done"], first["final"].keys()) == ({"event": "done"}, {"event", "iteration", "loss"})


def test_curves_can_be_drawn_from_it(tmp_path: Path) -> None:
    logged(tmp_path, tmp_path / "log.jsonl")
    curves = read_run(tmp_path / "log.jsonl").curves
    assert curves["train loss"].iterations == [0, 2, 4]
    assert curves["lr"].values == pytest.approx([0.1, 0.05])
    assert {"test test_loss", "ip rank", "ip cosine", "ip ratio"} <= curves.keys()


def test_resume_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    """Also behind the half line of a process that was killed; a run from the start begins the file anew."""
    path = tmp_path / "log.jsonl"
    logged(tmp_path, path)
    before = path.read_text()
    path.write_text(before + '{"event": "tra')
    logged(tmp_path, path, tmp_path / "s_iter_2.solverstate.h5")
    assert path.read_text().startswith(before)
    more = [one["event"] for one in objects(path)[len(before.splitlines()) :]]
    assert more[:3] == ["restore", "warning", "start"]
    assert more[-1] == "done"
    logged(tmp_path, path)
    assert [one["event"] for one in objects(path)] == [json.loads(line)["event"] for line in before.splitlines()]


def test_lines_are_there_at_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    log(Event("warning", {"text": "early"}))
    log(Event("start", {"net": "n", "policy": "fixed"}))
    log(Event("progress", {"iteration": 1, "max_iter": 2}))
    log(Event("final", {"iteration": 1, "loss": 0.5}))
    assert [one["event"] for one in objects(path)] == ["warning", "start", "final"]
    log.close()


def test_numbers_that_json_lacks_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    for value in ("nan", "inf", "-inf"):
        log(Event("start", {"loss": float(value), "pair": (1.0, float(value))}))
    log.close()
    assert [(one["loss"], one["pair"]) for one in objects(path)] == [
        (value, [1.0, value]) for value in ("nan", "inf", "-inf")
    ]


def test_run_that_fails_before_it_starts_leaves_its_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "done"}\n')
    log = JsonLog(path)
    log(Event("error", {"text": "bad"}))
    log.close()
    assert [one["event"] for one in objects(path)] == ["done", "error"]


def test_pipes_are_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = JsonLog(path)
    log(Event("start", {"net": "n", "policy": "fixed"}))
    assert json.loads(os.read(reader, 1000))["net"] == "n"
    log.close()
    os.close(reader)
    with pytest.raises(ForceregError, match=r"cannot write .*: no such device or address; have something read it"):
        JsonLog(path)  # else it would fill, and the run would wait for ever


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=r"--log-json: cannot write .*gone/log: no such file or directory"):
        JsonLog(tmp_path / "gone" / "log")
    log = JsonLog("/dev/full")
    with pytest.raises(ForceregError, match="--log-json: cannot write /dev/full: no space left on device"):
        log(Event("start", {"net": "n", "policy": "fixed"}))
    log.close()
