"""`forcereg time` and `forcereg device_query`: Caffe's lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import forcereg.study.latency as latency
from forcereg import snapshot
from tests.commands.conftest import Cli, said
from tests.solver.nets import write_images
from tests.solver.test_log_lines import PREFIX, VALUE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images net in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path)


def messages(err: str) -> list[str]:
    found = [re.fullmatch(f"({PREFIX})(.*)", line) for line in err.splitlines()]
    assert all(found), err
    return [line.removeprefix(match[1]) for line, match in zip(err.splitlines(), found, strict=True)]


def test_caffes_lines(here: Path, cli: Cli) -> None:
    code, out, err = cli("time", "-model", "net.prototxt", "-iterations=2", "--device", "cpu")
    assert (code, out) == (0, "")
    layers = ("data", "conv", "bn", "scale", "relu", "drop", "ip", "loss")
    expected = [
        r"\*\*\* Benchmark begins \*\*\*",
        r"Testing for 2 iterations\.",
        *(rf"Iteration: {i} forward-backward time: {VALUE} ms\." for i in (1, 2)),
        r"Average time per layer: ",
        *(rf"{name:>10}\t{way}: {VALUE} ms\." for name in layers for way in ("forward", "backward")),
        *(
            rf"{what}: {VALUE} ms\."
            for what in ("Average Forward pass", "Average Backward pass", "Average Forward-Backward", "Total Time")
        ),
        r"\*\*\* Benchmark ends \*\*\*",
    ]
    found = messages(err)
    assert len(found) == len(expected)
    for message, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, message), (message, pattern)


def test_phase_level_stage_and_weights(here: Path, cli: Cli) -> None:
    rule = 'include { min_level: 1 stage: "deep" } '
    more = f'layer {{ name: "more" type: "Sigmoid" bottom: "ip" top: "more" {rule} }}'
    (here / "net.prototxt").write_text((here / "net.prototxt").read_text() + more)
    _, _, train = cli("time", "--model", "net.prototxt", "--iterations", 1)
    _, _, test = cli("time", "--model", "net.prototxt", "--iterations", 1, "--phase", "TEST")
    _, _, deep = cli("time", "--model", "net.prototxt", "--iterations", 1, "--level", 1, "-stage", "deep")
    assert [("  accuracy\t" in err, "more\t" in err) for err in (train, test, deep)] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip
    snapshot.write_model(here / "w.caffemodel.h5", {"scale": {0: np.ones(4, np.float32), 1: np.zeros(4, np.float32)}})
    with pytest.warns(UserWarning, match="Layers left as initialised: conv, bn, ip"):
        assert cli("time", "--model", "net.prototxt", "--iterations", 1, "--weights", "w.caffemodel.h5")[0] == 0
    code, _, err = cli("time", "--model", "net.prototxt", "--weights", "gone.h5")
    assert (code, "gone.h5" in said(err)) == (1, True)


def test_shapes_stand_in_for_data(tmp_path: Path, cli: Cli) -> None:
    write_images(tmp_path)
    (tmp_path / "train_lmdb" / "data.mdb").unlink()
    shapes = ("--input-shape", "data=2,1,6,6", "--input-shape", "label=2")
    code, _, err = cli("time", "--model", tmp_path / "net.prototxt", "--iterations", 1, *shapes)
    assert (code, "Average Forward pass" in err) == (0, True)


def test_another_runtime_is_told(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        latency, "interleaved", lambda runs, device, rounds: [[9.0 + at, 11.0 + at] for at, _ in enumerate(runs)]
    )
    args = ("time", "--model", "net.prototxt", "--iterations", 2, "--runtime", "onnxruntime", "--threads", 1)
    code, _, err = cli(*args)
    assert code == 0, err
    assert messages(err)[2:] == [
        "Iteration: 1 forward time: 9 ms.",
        "Iteration: 2 forward time: 11 ms.",
        "Average time per layer, each alone in onnxruntime: ",
        *(f"{name:>10}\tforward: {ms} ms." for ms, name in enumerate(("conv", "relu", "drop", "ip", "prob"), 11)),
        "Average Forward pass of the whole net in onnxruntime: 10 ms.",
        "*** Benchmark ends ***",
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = cli(*args)
    assert "onnxruntime forward ms" in " ".join(out.split()) and "whole net" in out


def test_table_on_a_terminal(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = cli("time", "--model", "net.prototxt", "--iterations", 1)
    assert code == 0
    for text in ("layer", "forward ms", "backward ms", "share", "conv", "total"):
        assert text in out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        pytest.param(["time"], 2, "Missing option '--model'", id="no-model"),
        pytest.param(["time", "--model", "net.prototxt", "--iterations", "0"], 2, "'--iterations'", id="iterations"),
        pytest.param(["time", "--model", "net.prototxt", "--phase", "MIDDLE"], 1, "unknown phase 'MIDDLE'", id="phase"),
        pytest.param(["time", "--model", "net.prototxt", "--gpu", "x"], 2, "--gpu is 'x'", id="gpu"),
        pytest.param(["time", "--model", "gone.prototxt"], 1, "gone.prototxt: no such file", id="file"),
        pytest.param(["time", "--model", "net.prototxt", "--runtime", "x"], 2, "unknown runtime 'x'", id="runtime"),
        pytest.param(["device_query", "--gpu", "0,0"], 2, "each GPU can be named once", id="twice"),
    ],
)
def test_what_can_be_wrong(args: list[str], code: int, says: str, here: Path, cli: Cli) -> None:
    found, out, err = cli(*args)
    assert (found, out) == (code, "")
    assert says in said(err)


def test_first_of_several_gpus(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any there is one warning, as for a single one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = cli("time", "--model", "net.prototxt", "--iterations", 1, "--gpu", "1,0")
    assert code == 0
    assert len(re.findall(r"^W.*no CUDA device.*running on the CPU$", err, re.MULTILINE)) == 1


def test_no_cuda_device(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for args in ([], ["-gpu", "0"], ["--gpu=all"]):
        code, out, err = cli("device_query", *args)
        assert (code, out) == (0, "")
        assert messages(err)[-1] == "no CUDA device"


def test_devices_facts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU tells, from one that isn't there."""
    facts = {"name": "Tesla T0", "major": 7, "minor": 5, "total_memory": 16 << 30, "multi_processor_count": 40}
    device = type("Properties", (), {**facts, "warp_size": 32})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (12 << 30, 16 << 30))
    code, _, err = cli("device_query", "--gpu", "all")
    assert code == 0
    told = [re.split(r":\s+", message, maxsplit=1) for message in messages(err) if ":" in message]
    assert [value for name, value in told if name == "Device id"] == ["0", "1"]
    for fact in (["Name", "Tesla T0"], ["Major revision number", "7"], ["Warp size", "32"],
                 ["Total global memory", f"{16 << 30} (16.0 GiB)"], ["bfloat16 arithmetic", "No"]):  # fmt: skip
        assert told.count(fact) == 2, fact
    code, _, err = cli("device_query", "--gpu", "5")
    assert code == 2
    assert err.splitlines()[-1] == "forcereg: there is no GPU 5; 2 found, counted from 0"
