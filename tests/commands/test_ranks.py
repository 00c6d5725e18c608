"""`forcereg ranks`: the rank that each layer needs at several errors, with bars; plain columns behind a pipe."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from forcereg.lowrank import pca, vh
from forcereg.net.load import load_net
from forcereg.report.ranks import BAR, PLAIN, SHADES, bar, legend
from forcereg.snapshot import read_model, write_model
from tests.commands.conftest import Cli, said
from tests.conftest import TOP, RunCli

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 6 kernel_size: 5 group: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "net_iter_7.caffemodel.h5"
    held = load_net(NET, seed=1).params.items()
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(of)} for name, of in held}
    write_model(path, blobs, attrs={"forcereg_net": NET})
    return path


def test_json_has_the_ranks_of_decompose(snapshot: Path, cli: Cli) -> None:
    code, out, _ = cli("ranks", snapshot, "--json", "--error", "0.3,0.5")
    printed = json.loads(out)
    weights = read_model(snapshot).layers
    assert code == 0 and printed["errors"] == [0.3, 0.5]
    for layer, groups in zip(printed["layers"], (1, 2), strict=True):
        found = [pca(weights[layer["name"]][0], error=error, groups=groups).rank for error in (0.3, 0.5)]
        assert layer["ranks"] == found
    assert [layer["full_rank"] for layer in printed["layers"]] == [8, 6]
    assert [layer["cheaper_up_to"] for layer in printed["layers"]] == [6, 4]
    for at, error in enumerate(("0.3", "0.5")):
        code, out, _ = cli("decompose", "--snapshot", snapshot, "--error", error, "--json")
        assert {"error": float(error), **json.loads(out)["net"]} == printed["net"][at]


def test_layer_options_hold(snapshot: Path, cli: Cli) -> None:
    options = ("--method", "vh", "--only-layers", "conv1", "--error", "0.1")
    (layer,) = json.loads(cli("ranks", snapshot, "--json", *options)[1])["layers"]
    weight = read_model(snapshot).layers["conv1"][0]
    assert (layer["method"], layer["ranks"]) == ("vh", [vh(weight, error=0.1).rank])
    names = [layer["name"] for layer in json.loads(cli("ranks", snapshot, "--json", "--fc")[1])["layers"]]
    assert names == ["conv1", "conv2", "ip"]


def test_piped_it_is_plain_columns(snapshot: Path, run_cli: RunCli) -> None:
    done = run_cli("ranks", snapshot, env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii() and "\x1b" not in done.stdout
    head, conv1, conv2, speedup, params, shades, hint = (line.split() for line in done.stdout.splitlines())
    assert head[:2] == ["layer", "method"] and head[-5:-1] == ["0.01", "0.05", "0.1", "0.2"]
    assert conv1[:4] == ["conv1", "pca", "8", "6"] and conv2[:4] == ["conv2", "pca", "6", "4"]
    assert len(conv1[8]) <= BAR and set(conv1[8]) <= set(PLAIN)
    assert speedup[1].endswith("x") and len(params) == 2 + 4
    assert shades[0] == "bars:" and hint[0] == "speed-up"
    assert not list(snapshot.parent.glob("*lowrank*"))


def test_on_a_terminal_it_has_rules_and_shades(snapshot: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(TOP), "COLUMNS": "120", "TERM": "xterm", "PYTHONUTF8": "1"}
    call = [sys.executable, "-m", "forcereg", "ranks", str(snapshot)]
    with subprocess.Popen(call, env=env, stdout=theirs, stderr=subprocess.PIPE) as running:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        assert running.wait() == 0
    os.close(ours)
    text = shown.decode()
    assert "━" in text and SHADES[0] in text


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param(["--error", "0.1,2"], 2, "--error is '0.1,2'; expected bounds from 0 to 1", id="range"),
        pytest.param(["--error", "a"], 2, "--error is 'a'; expected bounds", id="text"),
        pytest.param(["--error", ""], 2, "--error is ''; expected bounds", id="none"),
        pytest.param(["--error", "nan"], 2, "--error is 'nan'; expected bounds", id="nan"),
        pytest.param(
            ["--method", "mixed"], 2, "mixed takes each layer's method from decompose's --rank-config", id="mixed"
        ),
        pytest.param(["--method", "tucker"], 2, 'did you mean "tucker2"?', id="method"),
        pytest.param(["--except-layers", "conv1,conv2"], 1, "nothing to decompose in <net in", id="nothing"),
    ],
)
def test_errors_are_one_line(snapshot: Path, args: list[str], code: int, message: str, cli: Cli) -> None:
    found, out, err = cli("ranks", snapshot, *args)
    assert (found, out) == (code, "") and message in said(err)


def test_a_layer_that_cannot_be_is_named(snapshot: Path, cli: Cli) -> None:
    _, out, _ = cli("ranks", snapshot, "--method", "vh", "--fc")
    assert "can't be decomposed: ip: vh needs a kernel of two axes" in out


@pytest.mark.parametrize(
    ("ranks", "errors", "expected"),
    [
        pytest.param([12, 6, 3], [0.01, 0.1, 0.2], "#" * 5 + "+" * 5 + "-" * 10, id="falling-errors-darken"),
        pytest.param([6], [0.1], "#" * 10 + " " * 10, id="rest-is-blank"),
        pytest.param([1, 1], [0.1, 0.2], "##" + " " * 18, id="equal-ranks"),
        pytest.param([3, 6, 9, 10, 12], [0.5, 0.4, 0.3, 0.2, 0.1], "#" * 10 + "+" * 5 + "-" * 2 + "." * 3, id="five"),
    ],
)
def test_bar(ranks: list[int], errors: list[float], expected: str) -> None:
    assert bar(ranks, errors, 12, PLAIN) == expected


def test_legend_names_every_error() -> None:
    assert legend([0.01, 0.2], SHADES) == "bars: share of the full rank at error █ 0.2, ▓ 0.01"


def test_unknown_macs_are_told(snapshot: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "net.prototxt").write_text(NET.replace("input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } }", ""))
    code, out, _ = cli("ranks", snapshot, "--model", tmp_path / "net.prototxt", "--error", "0.1")
    assert code == 0 and "MACs are unknown: data that isn't here" in out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("speed-up  "))
    assert row == ["speed-up", "-"]
