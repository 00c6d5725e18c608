"""scripts/bench/alexnet_lowrank.py measures what it says; how long that takes decides no test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench import alexnet_lowrank as bench

from forcereg.net.module import Net

CPU = torch.device("cpu")
LAYERS = pytest.mark.parametrize("layer", bench.LAYERS, ids=lambda layer: layer.name)


def macs(net: Net) -> int:
    return sum(module.macs for _, module in net.built if module is not None)


@LAYERS
def test_alexnet_pairs_cost_what_the_table_says(layer: bench.Layer) -> None:
    ranks = list(layer.paper_ranks)
    nets = [run.func for run in bench.runs(layer, ranks, 1, CPU)][:: len(bench.LAYOUTS)]
    whole, *pairs = (macs(net) for net in nets)
    even = [rank // layer.groups * layer.groups for rank in ranks]
    assert [whole / pair for pair in pairs] == pytest.approx([layer.theory(rank) for rank in even], rel=1e-12)


@LAYERS
def test_alexnet_layers_run_in_both_layouts(layer: bench.Layer) -> None:
    runs: list[Any] = list(bench.runs(layer, [16], 2, CPU))
    assert len(runs) == 2 * len(bench.LAYOUTS)
    for run, layout in zip(runs, [*bench.LAYOUTS.values()] * 2, strict=True):
        with torch.inference_mode():
            blob = run()["y"]
        assert tuple(blob.shape) == (2, layer.outputs, 13, 13) and blob.is_contiguous(memory_format=layout)


def test_the_factor_is_of_the_best_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [[9.0], [10.0], [6.0], [4.0]]
    monkeypatch.setattr(bench, "interleaved", lambda runs, device, seconds: times)
    dense, pair = bench.measure(bench.LAYERS[0], [124], 1, CPU, 0)
    assert (dense.rank, dense.ms, dense.factor) == (None, {"contiguous": 9, "channels_last": 10}, None)
    assert (pair.rank, pair.factor) == (124, 9 / 4)
    assert pair.same_layout == {"contiguous": 9 / 6, "channels_last": 10 / 4}


@pytest.mark.parametrize(("factor", "told"), [(2.45, "reached"), (2.44, "missed")])
def test_the_papers_factor_is_a_goal_up_to_its_rank(
    capsys: pytest.CaptureFixture[str], factor: float, told: str
) -> None:
    same = {"contiguous": 1.0, "channels_last": 1.0}
    rows = [bench.Row("conv3", 32, rank, 2.0, same, factor, same) for rank in (184, 112)]
    bench.report(bench.LAYERS[0], rows, CPU)
    first, second = capsys.readouterr().out.splitlines()
    assert told in second and "2.45x" in second and "reached" not in first and "missed" not in first
