"""scripts/bench/growth.py fits and tells what it says; how long anything takes decides no test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import growth
import pytest
import torch
from growth import Growth
from table import read_figures

from forcereg.errors import ForceregError
from forcereg.registry import factorizer, force_type
from forcereg.solver.force import force_gradient
from tests.conftest import TOP


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_exponent_is_of_a_power(power: float) -> None:
    sizes = [64, 128, 256, 512]
    found = Growth("force", "filters", "x", sizes, [3e-4 * size**power for size in sizes])
    assert found.exponent() == pytest.approx(power, abs=1e-12) == found.exponent(larger=True)


def test_the_larger_half_has_an_exponent_of_its_own() -> None:
    found = Growth("force", "filters", "x", [1, 2, 4, 8], [1.0, 1.0, 1.0, 4.0])
    assert found.exponent(larger=True) == pytest.approx(2)
    assert 0 < found.exponent() < 2
    assert math.isnan(Growth("force", "filters", "x", [1], [1.0]).exponent())


def test_the_median_is_of_warm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 2.0, 3.0, 3.0, 8.0, 8.0, 9.0])  # after the first: 2, 1, 5, 1 seconds
    runs: list[None] = []
    monkeypatch.setattr(growth, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert growth.seconds_of(lambda: runs.append(None), 8.5) == 1.5
    assert len(runs) == 5


def test_a_decomposition_has_the_rank() -> None:
    weight = growth.weight_of(12, 4)
    factors: Any = growth.decomposition("pca", weight)()
    assert weight.shape == (12, 4, 3, 3) and factors.rank == growth.RANK


def test_a_missing_library_leaves_its_row_out(capsys: pytest.CaptureFixture[str]) -> None:
    def make(name: str, weight: torch.Tensor) -> growth.Run:
        if name == "lost":
            raise ForceregError("lost needs a library")
        return lambda: force_gradient(weight)

    found = growth.measured("decomposition", make, ["lost", "kept"], 8, True, 0)
    assert [(one.of, one.name) for one in found] == [("filters", "kept"), ("length", "kept")]
    assert [list(one.sizes) for one in found] == [[16, 32, 64], [144, 288, 576]]
    assert "lost needs a library" in capsys.readouterr().out


def test_figures_compare_with_the_products_and_name_the_steepest() -> None:
    def grown(part: str, name: str, power: int) -> Growth:
        return Growth(part, "filters", name, [1, 2], [1.0, 2.0**power])

    found = [grown("force", "a", 1), grown("force", "b", 2), grown("decomposition", "c", 3)]
    times = {"two products": [2.0, 1.0, 4.0], "a": [1.0, 1.0, 9.0], "b": [3.0, 3.0, 3.0]}
    told = growth.figures(found, times, (10, 20))
    assert [(one.what, one.value, one.goal, one.verdict) for one in told[:2]] == [
        ("a force 10x20 / its two products", 0.5, 1.3, "reached"),
        ("b force 10x20 / its two products", 1.5, 1.3, "missed"),
    ]
    assert [one.what for one in told[2:]] == [
        "force: steepest exponent in filters, b",
        "decomposition: steepest exponent in filters, c",
    ]
    assert [one.value for one in told[2:]] == pytest.approx([2, 3])


def test_quick_run(tmp_path: Path) -> None:
    script = TOP / "scripts" / "bench" / "growth.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", "out.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    machine, told = read_figures(tmp_path / "out.json")
    assert done.stdout.startswith(machine) and "1 threads" in machine
    assert [one.what for one in told][: len(list(force_type))] == [
        f"{kind} force 96x576 / its two products" for kind in force_type
    ]
    details = json.loads((tmp_path / "out.json").read_text())["details"]
    names = {(one["part"], one["of"], one["name"]) for one in details["growth"]}
    missing = {name for name in factorizer if f"{name}: {name} needs" in done.stdout}
    assert names == {
        *(("force", of, kind) for of in ("filters", "length") for kind in force_type),
        *(("decomposition", of, name) for of in ("filters", "length") for name in set(factorizer) - missing),
    }
    assert all(len(one["seconds"]) == len(one["sizes"]) == 3 and min(one["seconds"]) > 0 for one in details["growth"])
    for title in ("force, filters of 576 values", "force, 256 filters", "decomposition, 64 filters"):
        assert title in done.stdout
