"""scripts/bench/alexnet_lowrank.py measures what it says; how long that takes decides no test."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lowrank_rows
import pytest
import torch
from bench import alexnet_lowrank as bench
from lowrank_rows import Row, read_rows, tables, write_rows

from forcereg.net.module import Net
from forcereg.study.bench import bench_of

PLACE = bench.Place(bench_of("cpu"), 0)
LAYERS = pytest.mark.parametrize("layer", bench.LAYERS, ids=lambda layer: layer.name)
ROW = Row("2026-12-01", "a CPU", "2", "torch 2", "conv3", "124", "1", 2.65, "2.45", 9.0, 4.0, 2.25, "contiguous")


def macs(net: Net) -> int:
    return sum(module.macs for _, module in net.built if module is not None)


@LAYERS
def test_alexnet_pairs_cost_what_the_table_says(layer: bench.Layer) -> None:
    nets = [run.func for run in layer.runs(layer.ranks, 1, PLACE)][:: len(bench.LAYOUTS)]
    whole, *pairs = (macs(net) for net in nets)
    assert [whole / pair for pair in pairs] == pytest.approx([layer.theory(rank) for rank in layer.ranks], rel=1e-12)


@LAYERS
def test_alexnet_layers_run_in_both_layouts(layer: bench.Layer) -> None:
    runs: list[Any] = list(layer.runs([16], 2, PLACE))
    assert len(runs) == 2 * len(bench.LAYOUTS)
    for run, layout in zip(runs, [*bench.LAYOUTS.values()] * 2, strict=True):
        with torch.inference_mode():
            blob = run()["y"]
        assert tuple(blob.shape) == (2, layer.outputs, 13, 13) and blob.is_contiguous(memory_format=layout)


def test_the_factor_is_of_the_best_times_and_known_ranks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = dataclasses.replace(bench.LAYERS[0], ranks=(184, 124))
    known = (*PLACE.key, layer.name, "184", "1")
    monkeypatch.setattr(bench.Place, "medians", lambda self, runs: [9.0, 10.0, 6.0, 4.0][: len(runs)])
    ((row,),) = layer.rows([1], dataclasses.replace(PLACE, known={known}))
    assert (row.ranks, row.dense_ms, row.ms, row.factor) == ("124", 9, 4, 9 / 4)
    assert row.layout == "contiguous / channels_last" and row.paper == "2.45"
    assert list(layer.rows([1], dataclasses.replace(PLACE, known={known, row.key}))) == []


@pytest.mark.parametrize(("rank", "told"), [(124, "2.45"), (123, "")])
def test_the_papers_factor_is_a_goal_from_its_rank_on(rank: int, told: str) -> None:
    assert bench.LAYERS[0].paper(rank, torch.device("cpu")) == told


@pytest.mark.parametrize(("factor", "shown"), [(2.446, "**2.45x**"), (2.44, "2.44x")])
def test_a_factor_that_reaches_the_papers_is_bold(factor: float, shown: str) -> None:
    assert dataclasses.replace(ROW, factor=factor).text == f"9 → 4, {shown}"


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["alexnet_lowrank.py", *args])
    bench.main()


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is called once, whatever it takes."""
    monkeypatch.setattr(bench, "interleaved", lambda runs, device, seconds: [[float(len(run()))] for run in runs])


def test_rows_are_measured_once_by_each_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], untimed: None
) -> None:
    out = tmp_path / "rows.csv"
    asked = [str(out), "--only", "conv5", "--batch", "1,2", "--threads", "1", "--ranks", "8,8,8"]
    for runtime in ("torch", "onnxruntime"):
        run(monkeypatch, *asked, "--runtime", runtime)
    rows = read_rows(out)
    assert [(row.runtime.split()[0], row.batch, row.ranks, row.factor, row.threads) for row in rows] == [
        (runtime, batch, rank, 1.0, "1")
        for runtime in ("torch", "onnxruntime")
        for batch in ("1", "2")
        for rank in ("160", "146", "129", "120", "8")
    ]
    assert {row.layout for row in rows if row.runtime.startswith("onnx")} == {""}
    capsys.readouterr()
    run(monkeypatch, *asked)
    assert capsys.readouterr().out == "" and read_rows(out) == rows
    run(monkeypatch, str(out), "--table")
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + 10 + 2 and shown[2] == "| conv5 | 160 | 1.49x | 1.64x | 1 | 1 → 1, 1.00x | 1 → 1, 1.00x |"


def test_a_whole_net_is_cut_once_for_what_is_missing(untimed: None) -> None:
    net = next(one for one in bench.NETS if one.name == "ResNet-20")
    place = dataclasses.replace(PLACE, bench=bench_of("cpu", "onnxruntime", 1))
    ((row,),) = net.rows([2], place)
    assert (row.what, row.ranks, row.batch, row.factor) == ("ResNet-20", "half the MACs", "2", 1.0)
    assert 1.98 < row.macs < 2.05
    assert list(net.rows([2], dataclasses.replace(place, known={row.key}))) == []


def test_rows_survive_the_file_and_places_have_tables_of_their_own(tmp_path: Path) -> None:
    rows = [
        ROW,
        dataclasses.replace(ROW, what="AlexNet", ranks="8, 40", paper=""),
        dataclasses.replace(ROW, runtime="openvino 1", date="2026-12-02"),
        dataclasses.replace(ROW, threads="1"),
    ]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    first, second = tables(rows).split("\n\n| ")
    assert (
        "| conv3 | 124 | 2.65x | 2.45x | 1 | 9 → 4, 2.25x | 9 → 4, 2.25x |\n| AlexNet | 8, 40 | 2.65x |  | 1 | "
        in first
    )
    assert "(a CPU, threads: 2, 2026-12-01 to 2026-12-02;" in first and "threads: 1, 2026-12-01;" in second


@pytest.mark.parametrize("text", ["what\nconv3\n", "\x00", "date\n\xff"])
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit, match=r"rows\.csv: not a file that this script wrote"):
        lowrank_rows.read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--only", "conv9"], "unknown 'conv9'"), (["--runtime", "tensorrt"], "unknown runtime 'tensorrt'")],
)
def test_a_slip_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: Sequence[str],
    told: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, str(tmp_path / "rows.csv"), *options)
    assert told in capsys.readouterr().err
