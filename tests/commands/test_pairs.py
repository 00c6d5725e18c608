"""Pairs of ranks, multiples and rounded ranks on the command line: what is chosen, shown and written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from forcereg.lowrank.accuracy import Point
from forcereg.net.load import load_net
from forcereg.report.ranks import DEAR
from forcereg.report.sensitivity import as_csv
from forcereg.snapshot import read_model
from forcereg.study.frontier import WHOLE
from forcereg.study.frontier import Point as FrontierPoint
from forcereg.study.frontier_report import as_csv as frontier_csv
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import NET, fresh_snapshot
from tests.conftest import RunCli

WIDER = NET.replace("num_output: 6 kernel_size: 5 group: 2", "num_output: 24 kernel_size: 3 group: 2")
"""conv1 8x3x3x3, conv2 24x4x3x3 in two groups: full ranks 8-3 and 24-8."""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return fresh_snapshot(tmp_path, WIDER)


def layers(out: str) -> list[dict]:
    return json.loads(out)["layers"]


def test_pairs_are_shown_and_can_be_given(snapshot: Path, run_cli: RunCli) -> None:
    done = run_cli(
        "decompose", "--snapshot", snapshot, "--method", "tucker2", "--ranks", "4-2,8-6", env={"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.replace("│", " ").splitlines() if line.strip()}
    assert rows["conv1"][1:4] == ["tucker2", "8-3", "4-2"] and rows["conv2"][1:4] == ["tucker2", "24-8", "8-6"]
    assert rows["total"][1:3] == ["32-11", "12-8"]
    written = snapshot.with_name("snap_iter_7_lowrank.prototxt")
    assert "ranks: conv1 4-2 of 8-3 (tucker2), conv2 8-6 of 24-8 (tucker2)" in written.read_text().splitlines()[0]
    shapes = {name: held[0].shape for name, held in load_net(written).params.items() if held}
    assert shapes["conv2_in"] == (6, 4, 1, 1) and shapes["conv2_lowrank"] == (8, 3, 3, 3)
    assert shapes["conv2_linear"] == (24, 4, 1, 1)
    (made,) = json.loads(read_model(written.with_suffix(".caffemodel.h5")).attrs["forcereg_decomposed"])
    assert [layer["ranks"] for layer in made["layers"]] == [[4, 2], [8, 6]]


def test_json_has_pairs_that_a_rank_config_takes(snapshot: Path, cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("ranks", snapshot, "--method", "tucker2", "--error", "0.1,0.4", "--json")
    found = layers(out)
    assert code == 0 and [layer["full_rank"] for layer in found] == [[8, 3], [24, 8]]
    assert all(len(layer["cheaper_up_to"]) == 2 for layer in found)
    config = tmp_path / "ranks.json"
    config.write_text(json.dumps({layer["name"]: layer["ranks"][1] for layer in found}))
    options = ("--method", "tucker2", "--json", "--snapshot", snapshot)
    given = layers(cli("decompose", *options, "--rank-config", config)[1])
    asked = layers(cli("decompose", *options, "--error", "0.4", "--even-if-dearer")[1])
    assert given == asked and [layer["ranks"] for layer in asked] == [layer["ranks"][1] for layer in found]
    for layer in asked:
        assert layer["error"] <= 0.4 and layer["rank"] == layer["ranks"][0] and layer["widths"] == layer["ranks"][::-1]


def test_a_table_of_ranks_marks_pairs_that_save_nothing(snapshot: Path, run_cli: RunCli) -> None:
    done = run_cli("ranks", snapshot, "--method", "tucker2", "--error", "0.001,0.9")
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["conv1"][2] == "8-3" and rows["conv1"][4] == f"8-3{DEAR}" and DEAR not in rows["conv1"][5]
    assert "pairs: outputs-inputs" in done.stdout
    plain = run_cli("ranks", snapshot, "--error", "0.001,0.9").stdout
    assert DEAR not in plain and "pairs" not in plain


@pytest.mark.parametrize(
    ("options", "ranks", "texts"),
    [
        pytest.param(["--ranks", "4,8"], [[4], [8]], [], id="as-asked"),
        pytest.param(
            ["--ranks", "4,9"],
            [[4], [8]],
            ["conv2: rank 9 was asked for, 8 is taken: the same in each of the 2 groups"],
            id="groups",
        ),
        pytest.param(
            ["--ranks", "3,9", "--multiple", "4"],
            [[4], [8]],
            [
                "conv1: rank 3 was asked for, 4 is taken: a multiple of 4",
                "conv2: rank 9 was asked for, 8 is taken: a multiple of 4, the same in each of the 2 groups",
            ],
            id="multiple",
        ),
        pytest.param(
            ["--method", "tucker2", "--ranks", "4-2,9-6"],
            [[4, 2], [8, 6]],
            ["conv2: rank 9-6 was asked for, 8-6 is taken: the same in each of the 2 groups"],
            id="pair",
        ),
    ],
)
def test_rounded_ranks_are_told(
    snapshot: Path, options: list[str], ranks: list[list[int]], texts: list[str], cli: Cli
) -> None:
    code, out, _ = cli("decompose", "--snapshot", snapshot, *options, "--json")
    found = json.loads(out)
    assert code == 0 and [layer["ranks"] for layer in found["layers"]] == ranks
    assert [text for text in found["remarks"] if "asked for" in text] == texts
    shown = cli("decompose", "--snapshot", snapshot, *options)[1]
    assert [line for line in shown.splitlines() if "asked for" in line] == texts


@pytest.mark.parametrize("method", ["pca", "tucker2"])
@pytest.mark.parametrize(
    "rule", [["--error", "0.3"], ["--energy", "0.6"], ["--max-macs", "0.8"], ["--max-params", "0.95"]], ids=str
)
def test_every_rule_takes_multiples(snapshot: Path, rule: list[str], method: str, cli: Cli) -> None:
    options = ("--snapshot", snapshot, *rule, "--method", method, "--even-if-dearer", "--json")
    code, out, _ = cli("decompose", *options, "--multiple", "2")
    found = json.loads(out)
    assert code == 0 and found["layers"]
    for layer in found["layers"]:
        groups = 2 if layer["name"] == "conv2" else 1
        ranks = zip(layer["ranks"], layer["full_ranks"], strict=True)
        assert all(rank == full or rank % (2 * groups) == 0 for rank, full in ranks)
    if rule[0] == "--error":
        assert all(layer["error"] <= 0.3 for layer in found["layers"])
    if rule[0] == "--max-macs":
        assert found["net"]["macs_after"] <= 0.8 * found["net"]["macs_before"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param(["--ranks", "4-,8"], 2, "pairs for tucker2, as in 4-1,4-16", id="half"),
        pytest.param(["--ranks", "4-2,8"], 1, "rank is [4, 2]; expected one number (only tucker2", id="pca"),
        pytest.param(["--ranks", "4-9,8", "--method", "tucker2"], 1, "one number, or 2 up to [8, 3]", id="range"),
        pytest.param(["--ranks", "4,8", "--multiple", "0"], 2, "0 is not in the range x>=1", id="multiple"),
    ],
)
def test_what_is_no_rank(snapshot: Path, args: list[str], code: int, message: str, cli: Cli) -> None:
    found, out, err = cli("decompose", "--snapshot", snapshot, *args)
    assert (found, out) == (code, "") and message in (said(err) if "forcereg: " in err else err)


def test_pairs_can_be_read_from_csv() -> None:
    point = Point("conv1", "tucker2", 0.1, (4, 16), (50, 20), 0.09, 0.5, 0.9, 0.01)
    (row,) = csv.DictReader(as_csv([point]).splitlines())
    assert (row["rank"], row["full_rank"]) == ("4-16", "50-20")
    points = [
        FrontierPoint("net", "", WHOLE, {}, 10, 10, 0.9),
        FrontierPoint("net", "tucker2", "error 0.1", {"conv1": (4, 1), "conv2": (4, 16)}, 5, 5, 0.9),
        FrontierPoint("net", "pca", "error 0.1", {"conv1": 4, "conv2": 9}, 5, 5, 0.9),
    ]
    rows = list(csv.DictReader(frontier_csv(points).splitlines()))
    assert [row["ranks"] for row in rows] == ["", "conv1=4-1 conv2=4-16", "conv1=4 conv2=9"]
