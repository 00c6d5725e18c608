"""`forcereg check`, `summary`, `draw` and `layers`: what users see of a net."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from forcereg.commands.summary import show
from forcereg.net.load import shape_net
from forcereg.net.summary import summarize
from tests.commands.conftest import Cli, said
from tests.conftest import TOP, RunCli

CONFIGS = TOP / "configs"
SMALL = """
name: "small"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv[1]" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "prob" type: "Softmax" bottom: "c" top: "prob" }
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small.prototxt, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.prototxt").write_text(SMALL)
    return tmp_path


@pytest.mark.parametrize(
    ("net", "count"),
    [("alexnet", 60_965_224), ("caffenet", 60_965_224), ("googlenet", 6_998_552), ("vgg16", 138_357_544)],
)
def test_published_parameter_counts(net: str, count: int, cli: Cli) -> None:
    code, out, _ = cli("summary", CONFIGS / "models" / net / "deploy.prototxt")
    assert code == 0 and f"\n{count:,} parameters" in out


def test_summary_as_a_process(run_cli: RunCli) -> None:
    done = run_cli("summary", CONFIGS / "examples" / "mnist" / "lenet.prototxt")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert rows[1] == ["conv1", "Convolution", "64x20x24x24", "520", "288,000", "2.81 MiB"]
    assert rows[-1][3:5] == ["431,080", "2,293,000"]


def test_summary_as_json(small: Path, cli: Cli) -> None:
    code, out, _ = cli("summary", "small.prototxt", "--json")
    report = json.loads(out)
    assert code == 0 and report["layers"][1]["name"] == "conv[1]"
    assert report["totals"]["params"] == 5 * 27 + 5 and report["totals"]["macs"] == 5 * 27 * 36


def test_summary_with_given_shapes(cli: Cli) -> None:
    net = CONFIGS / "models" / "alexnet" / "train_val.prototxt"
    code, _, err = cli("summary", net, "--phase", "train")
    assert code == 1 and "no LMDB" in said(err)
    shapes = ("--input-shape", "data=2,3,227,227", "--input-shape", "label=2")
    code, out, _ = cli("summary", net, "--phase", "train", *shapes)
    assert code == 0 and "phase TRAIN, batch 2" in out and "724,406,816" in out


@pytest.mark.parametrize("text", ["data", "data=", "=1,2", "data=1,x", "data=1,-2"])
def test_bad_input_shapes(text: str, small: Path, cli: Cli) -> None:
    code, _, err = cli("summary", "small.prototxt", "--input-shape", text)
    assert code == 2 and said(err).startswith(f"--input-shape is '{text}'; expected BLOB=N,C,H,W")


def test_a_shape_for_no_input(small: Path, cli: Cli) -> None:
    code, _, err = cli("summary", "small.prototxt", "--input-shape", "X=1,3,8,8")
    assert code == 1 and said(err) == (
        "small.prototxt: a shape is given for 'X', which is no input here; did you mean \"x\"?"
    )


def test_a_narrow_terminal_loses_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    show(summarize(shape_net(CONFIGS / "models" / "googlenet" / "deploy.prototxt")))
    lines = re.sub("\x1b\\[[0-9]*m", "", capsys.readouterr().out).splitlines()
    cells = [cell.strip() for line in lines for cell in line.split("│")]
    assert all(len(line) <= 60 for line in lines[:-2])  # the totals are sentences
    assert {"10x192x56x56", "346,816,512", "261 MiB"} <= {*cells} and "…" not in "".join(cells)
    assert cells.count("inception_5b/output") == 1  # whole where there is room, folded where there is little


def test_shared_parameters_in_brackets(small: Path, cli: Cli) -> None:
    twice = SMALL.replace('top: "c" ', 'top: "c" param { name: "w" } ')
    again = twice.splitlines()[3].replace("conv[1]", "again").replace('top: "c"', 'top: "c2"')
    (small / "small.prototxt").write_text(f"{twice}{again}\n")
    code, out, _ = cli("summary", "small.prototxt")
    rows = {
        row[0]: row for row in ([cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()) if row
    }
    assert code == 0 and (rows["conv[1]"][3], rows["again"][3], rows["total"][3]) == ("140", "5 (135)", "145")
    assert "parameters in brackets are an earlier layer's" in out


def test_draw_text(small: Path, cli: Cli) -> None:
    code, out, _ = cli("draw", "small.prototxt", "net.txt")
    assert (code, out) == (0, "wrote net.txt\n")
    assert (small / "net.txt").read_text().splitlines() == [
        "small (TEST)",
        "x        Input        4x3x8x8",
        "conv[1]  Convolution  4x5x6x6",
        "prob     Softmax      4x5x6x6",
    ]


def test_draw_as_draw_net_is_called(small: Path, cli: Cli) -> None:
    code, _, _ = cli("draw", "small.prototxt", "net.dot", "--rankdir=LR", "--phase", "TEST", "--display_lrm")
    text = (small / "net.dot").read_text()
    assert code == 0 and "rankdir=LR" in text and "lr_mult 1, 1" in text
    code, _, err = cli("draw", "small.prototxt", "net.dot", "--rankdir", "down")
    assert code == 2 and "'down' is not one of 'TB', 'BT', 'LR', 'RL'" in err


def test_draw_without_data_has_no_shapes(small: Path, cli: Cli) -> None:
    code, _, err = cli("draw", CONFIGS / "models" / "alexnet" / "train_val.prototxt", "net.txt")
    assert code == 0 and "drawn without shapes" in err
    assert "conv1        Convolution\n" in (small / "net.txt").read_text()


DOT = """#!/bin/sh
[ "$1" = -Tsvg ] || { echo "no format $1" >&2; exit 3; }
echo "<svg>"; cat; echo "</svg>"
"""


@pytest.fixture
def graphviz(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `dot` on the path that knows svg only, and wraps what it gets."""
    tools = small / "tools"
    tools.mkdir()
    (tools / "dot").write_text(DOT)
    (tools / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    return small


def test_draw_by_graphviz(graphviz: Path, cli: Cli) -> None:
    code, _, _ = cli("draw", "small.prototxt", "net.svg")
    drawn = (graphviz / "net.svg").read_text()
    assert code == 0 and drawn.startswith("<svg>\ndigraph net {") and 'label="conv[1]\\nConvolution\\n4x5x6x6"' in drawn


def test_a_failing_graphviz_leaves_nothing(graphviz: Path, cli: Cli) -> None:
    code, _, err = cli("draw", "small.prototxt", "net.png")
    assert code == 1 and "`dot -Tpng` failed (no format -Tpng)" in said(err)
    assert sorted(path.name for path in graphviz.iterdir()) == ["small.prototxt", "tools"]


def test_draw_without_graphviz(small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(small))
    code, out, err = cli("draw", "small.prototxt", "net.svg")
    assert (code, out) == (0, "wrote net.txt\n") and "`dot` is not installed" in err
    assert sorted(path.name for path in small.iterdir()) == ["net.txt", "small.prototxt"]


def test_draw_to_an_unknown_kind(small: Path, cli: Cli) -> None:
    code, _, err = cli("draw", "small.prototxt", "net.bmp")
    assert code == 2 and "expected a name that ends in .svg" in said(err)


def test_check_as_a_process(small: Path, run_cli: RunCli) -> None:
    done = run_cli("check", "small.prototxt", cwd=small)
    assert done.returncode == 0 and done.stdout.endswith("small.prototxt: no problems found\n")
    (small / "small.prototxt").write_text(
        SMALL.replace("kernel_size: 3", "kernel_size: 11").replace('"Softmax"', '"Sftmax"')
    )
    done = run_cli("check", "small.prototxt", cwd=small)
    assert done.returncode == 1 and said(done.stderr) == "small.prototxt: 2 problems found, listed above"
    assert "problem: small.prototxt:4: layer 'conv[1]': kernel extent 11" in done.stdout
    assert "unknown layer type 'Sftmax'; did you mean \"Softmax\"?" in done.stdout  # though it lies behind


def test_layers_lists_the_registry(cli: Cli) -> None:
    code, out, _ = cli("layers", "--json")
    rows = {row["type"]: row for row in json.loads(out)}
    assert code == 0 and "kernel_size" in rows["Convolution"]["params"]["convolution_param"]
    code, out, _ = cli("layers")
    assert code == 0 and all(name in out for name in rows) and "forcereg[leveldb]" in out
