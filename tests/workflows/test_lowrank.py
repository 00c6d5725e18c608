"""forcereg.ranks, sensitivity, split_groups and merge_groups from Python: what the commands do."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.system.events import Event
from tests.commands.conftest import Cli

SNAPSHOT = "snap_iter_7.caffemodel.h5"


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        pytest.param({}, "", id="default"),
        pytest.param({"error": [0, 0.5], "method": "vh", "fc": True}, "--error 0,0.5 --method vh --fc", id="asked"),
        pytest.param({"layers": "conv2", "multiple": 2}, "--only-layers conv2 --multiple 2", id="layers"),
    ],
)
def test_ranks(keywords: dict[str, Any], options: str, folder: Path, cli: Cli) -> None:
    code, out, err = cli("ranks", SNAPSHOT, *options.split(), "--json")
    assert code == 0, err
    assert json.loads(json.dumps(forcereg.ranks(SNAPSHOT, **keywords).report)) == json.loads(out)


@pytest.mark.parametrize("call", [forcereg.ranks, forcereg.sensitivity], ids=["ranks", "sensitivity"])
def test_errors_out_of_range(call: Any, folder: Path) -> None:
    more = {} if call is forcereg.ranks else {"solver": None}
    with pytest.raises(UsageError, match="the error bound is 2; expected 0 to 1"):
        call(SNAPSHOT, error=[0.1, 2], **more)


def test_sensitivity(trained: Path, cli: Cli) -> None:
    model = "net_iter_30.caffemodel.h5"
    code, _, err = cli("sensitivity", model, "--solver", "solver.prototxt", "--error", "0.01,0.3")
    assert code == 0, err
    seen: list[Event] = []
    made = forcereg.sensitivity(model, solver="solver.prototxt", error=[0.01, 0.3], observer=seen.append)
    assert made.runs == 3 and [event.done for event in seen if event.kind == "progress"] == [0, 1, 2, 3]
    made.write("call.csv")
    assert Path("call.csv").read_text() == Path("net_iter_30_sensitivity.csv").read_text()
    with open("call.csv", newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["", "conv", "conv"]
    again = forcereg.sensitivity(
        model, solver="solver.prototxt", error=[0.01, 0.3], scores="net_iter_30_sensitivity.scores.json"
    )
    assert again.runs == 0 and again.points == made.points
    with pytest.raises(UsageError, match=r"out\.gif"):
        made.write("call.csv", "out.gif")


def test_groups_there_and_back(folder: Path, cli: Cli) -> None:
    assert cli("split-groups", SNAPSHOT, "--out", "command")[0] == 0
    split = forcereg.split_groups(SNAPSHOT, layers=["conv*"])
    assert split.layers == ("conv2",) and split.heading == "groups of conv2 as parallel layers"
    assert split.write("call")["weights"] == "call.caffemodel.h5"
    assert Path("call.prototxt").read_text() == Path("command.prototxt").read_text()
    merged = forcereg.merge_groups("call.caffemodel.h5")
    assert merged.layers == ("conv2",) and merged.weights["conv2"][0].shape == (6, 4, 5, 5)
    with pytest.raises(UsageError, match=r"'conv1' is no grouped Convolution of .* those are conv2"):
        forcereg.split_groups(SNAPSHOT, layers="conv1")
    with pytest.raises(ForceregError, match="nothing to merge"):
        forcereg.merge_groups(SNAPSHOT)
