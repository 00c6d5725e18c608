"""forcereg decompose --latency: what is chosen, printed and refused; times are given, not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import forcereg.study.latency as latency
from forcereg.net.load import load_net
from forcereg.snapshot import read_model, write_model
from tests.commands.conftest import Cli, said

NET = """
layer { name: "data" type: "Data" top: "data" top: "label"
  data_param { source: "absent_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 1 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 24 kernel_size: 5 weight_filler { type: "gaussian" std: 1 } } }
"""
INPUTS = {"data": [4, 8, 12, 12], "label": [4]}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "n.caffemodel.h5"
    net = load_net(NET, input_shapes={name: tuple(shape) for name, shape in INPUTS.items()}, seed=1)
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(held)} for name, held in net.params.items()}
    write_model(path, blobs, attrs={"forcereg_net": NET, "forcereg_input_shapes": json.dumps(INPUTS)})
    return path


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times are given: a microsecond for each weight, two where the filters aren't a multiple of 8. Batches run."""
    seen: list[int] = []

    def milliseconds(run: Any) -> float:
        seen.append(len(next(iter(run.args[0].values()))))
        weights = [blobs[0] for blobs in run.func.params.values() if blobs]
        return sum(weight.numel() for weight in weights) / (1000 if all(len(one) % 8 == 0 for one in weights) else 500)

    monkeypatch.setattr(latency, "interleaved", lambda runs, device: [[milliseconds(run)] for run in runs])
    return seen


def test_fast_ranks_are_taken_and_slow_layers_left(cli: Cli, snapshot: Path, batches: list[int]) -> None:
    code, out, err = cli(
        "decompose", "--snapshot", snapshot, "--ranks", "3,12", "--latency", "cpu", "--batch", 32, "--json"
    )
    assert code == 0 and set(batches) == {32}
    told = ["measuring conv1 as it is and at rank 3", "measuring conv2 as it is and at rank 12, 16"]
    assert err.splitlines() == told
    printed = json.loads(out)
    measured = printed["latency"]
    first, second = measured["layers"]
    assert first == {
        "name": "conv1", "asked": 3, "rank": None, "ms_before": 0.064, "ms_after": 0.064,
        "chains": [{"rank": 3, "ms": 0.096}],
    }  # fmt: skip
    assert (second["asked"], second["rank"], second["ms_before"]) == (12, 16, 4.8)
    assert [one["rank"] for one in second["chains"]] == [12, 16]
    assert second["ms_after"] == second["chains"][1]["ms"] == 3.584
    assert measured["net"]["ms_before"] == 4.864 and measured["net"]["ms_after"] == 3.648
    assert measured["batch"] == 32 and measured["device"].startswith("cpu, ")
    assert [(layer["name"], layer["rank"]) for layer in printed["layers"]] == [("conv2", 16)]
    reason = "measured: 0.064 ms as it is, 0.096 ms as a chain of rank 3"
    assert printed["skipped"] == [{"name": "conv1", "reason": reason}]
    assert {"conv1", "conv2_lowrank", "conv2_linear"} <= set(read_model(printed["weights"]).layers)


def test_the_table_tells_both_times(cli: Cli, snapshot: Path, batches: list[int]) -> None:
    code, out, _ = cli("decompose", "--snapshot", snapshot, "--ranks", "3,12", "--latency", "cpu")
    assert code == 0 and set(batches) == {4}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert ["conv1", "3", "whole", "0.064", "0.064", "1.00x", "3: 0.096"] in rows
    assert ["conv2", "12", "16", "4.8", "3.58", "1.34x", "12: 5.38, 16: 3.58"] in rows
    assert ["whole net", "", "", "4.86", "3.65", "1.33x", ""] in rows
    assert "left whole: conv1: measured: 0.064 ms as it is, 0.096 ms as a chain of rank 3" in out
    threads = torch.get_num_threads()
    assert f"on cpu, {threads} thread{'s' * (threads > 1)}, the net's batch" in out


def test_under_a_budget_ranks_go_down(cli: Cli, snapshot: Path, batches: list[int]) -> None:
    asked = ("decompose", "--snapshot", snapshot, "--max-macs", "0.65", "--only-layers", "conv2", "--json")
    assert cli(*asked)[0] == 0
    code, out, _ = cli(*asked, "--latency", "cpu")
    printed = json.loads(out)
    (layer,) = printed["latency"]["layers"]
    assert code == 0 and layer["rank"] == 8 < layer["asked"]
    assert printed["net"]["macs_after"] <= 0.65 * printed["net"]["macs_before"]


def test_where_nothing_gets_faster_nothing_is_written(cli: Cli, snapshot: Path, batches: list[int]) -> None:
    code, out, err = cli(
        "decompose", "--snapshot", snapshot, "--ranks", "3", "--only-layers", "conv1", "--latency", "cpu"
    )
    assert (code, out) == (1, "")
    assert said(err).endswith("(conv1: measured: 0.064 ms as it is, 0.096 ms as a chain of rank 3)")
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(
            ["--batch", "8"], 2, "--batch is what --latency cpu or cuda measures with; give that too", id="batch"
        ),
        pytest.param(["--latency", "gpu"], 2, "unknown device 'gpu'; expected auto, cpu, cuda or cuda:N", id="device"),
        pytest.param(["--latency", "cpu", "--batch", "0"], 2, "--batch", id="no-batch"),
        pytest.param(["--runtime", "openvino"], 2, "--runtime is how --latency cpu measures; give that too", id="by"),
        pytest.param(["--threads", "2"], 2, "--threads is how --latency cpu measures; give that too", id="threads"),
        pytest.param(["--latency", "cpu", "--threads", "0"], 2, "--threads", id="no-threads"),
        pytest.param(["--latency", "cpu", "--runtime", "tvm"], 2, "unknown runtime 'tvm'; expected", id="runtime"),
    ],
)
def test_errors(cli: Cli, snapshot: Path, options: list[str], code: int, message: str) -> None:
    found, out, err = cli("decompose", "--snapshot", snapshot, "--error", "0.1", *options)
    assert (found, out) == (code, "") and message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_elsewhere(cli: Cli, snapshot: Path) -> None:
    code, _, err = cli("decompose", "--snapshot", snapshot, "--error", "0.1", "--latency", "cuda")
    assert code == 1
    assert said(err) == "there is no CUDA device to measure on, but cuda was asked for; use cpu"


def test_unknown_shapes_are_told(cli: Cli, snapshot: Path) -> None:
    write_model(snapshot, read_model(snapshot).layers, attrs={"forcereg_net": NET})
    code, _, err = cli("decompose", "--snapshot", snapshot, "--error", "0.1", "--latency", "cpu")
    assert code == 1 and "blob shapes are unknown, so no layer can be measured" in said(err)


def test_a_net_without_a_test_phase_is_measured_by_layers(cli: Cli, snapshot: Path, batches: list[int]) -> None:
    found = read_model(snapshot)
    attrs = {**found.attrs, "forcereg_net": NET.replace("  data_param", "  include { phase: TRAIN } data_param")}
    write_model(snapshot, found.layers, attrs=attrs)
    code, out, err = cli("decompose", "--snapshot", snapshot, "--ranks", "3,12", "--latency", "cpu", "--json")
    measured = json.loads(out)["latency"]
    assert code == 0 and measured["net"] is None and measured["layers"][1]["rank"] == 16
    assert err.splitlines()[-1].startswith("the whole net isn't measured: ")
    code, out, _ = cli("decompose", "--snapshot", snapshot, "--ranks", "3,12", "--latency", "cpu")
    assert code == 0 and "3: 0.096" in out


def test_another_runtime_is_told(cli: Cli, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "interleaved", lambda runs, device: [[9.0 - at] for at, _ in enumerate(runs)])
    asked = ("decompose", "--snapshot", snapshot, "--ranks", "3,12", "--latency", "cpu")
    asked = (*asked, "--runtime", "onnxruntime", "--threads", 1)
    code, out, err = cli(*asked, "--json")
    measured = json.loads(out)["latency"]
    assert code == 0, err
    assert (measured["runtime"], measured["threads"]) == ("onnxruntime", 1)
    assert [one["rank"] for one in measured["layers"]] == [3, 16]
    code, out, _ = cli(*asked)
    assert code == 0 and "chains measured in onnxruntime" in " ".join(out.replace("┃", " ").split())
    assert f"on cpu, 1 thread, onnxruntime {runtime.__version__}, the net's batch" in out
