"""scripts/bench/scale.py measures, models and checks what it says; how long that takes decides no test."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scale_rows
from bench import scale as bench
from scale_rows import Check, Row

from tests.conftest import TOP
from tests.nursery import Nursery

ROW = Row("2026-12-01", "EPYC", "1", "lenet", "64", "dense", "2", 20.0, 1.0, 1e6, 2.0)


def test_the_model_adds_up() -> None:
    """20 + 1 ms, a millisecond for 1 Mbit at 1 Gbit/s, and two steps of half a millisecond."""
    assert ROW.milliseconds(1e9, 5e-4) == pytest.approx(20 + 1 + 1 + 1)


def test_one_net_is_measured_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits as counted by hand: 431,080 values; what ternary ones take in packed signs up to 8, then in int8."""
    out, args = tmp_path / "scale.csv", ["scale.py", str(tmp_path / "scale.csv"), "--machine", "EPYC"]
    monkeypatch.setattr(bench, "NETS", {"lenet": (*bench.NETS["lenet"][:2], 2)})
    monkeypatch.setattr(bench, "RANKS", (1, 2, 16))
    monkeypatch.setattr(sys, "argv", args)
    bench.main()
    rows = {(row.scheme, row.ranks): row for row in bench.kept.read(out, Row)}
    assert len(rows) == 5 * 3 and {row.compute_ms > 0 for row in rows.values()} == {True}
    assert rows["dense", "2"].bits == pytest.approx(32 * 431_080, rel=1e-5) == 2 * rows["bf16", "2"].bits
    assert rows["ternary", "2"].bits == pytest.approx(2 * 431_080 + 8 * 32, rel=1e-5)
    assert rows["ternary", "16"].bits == pytest.approx((8 * 431_080 + 8 * 32) * 2 * 15 / 16, rel=1e-5)
    assert rows["ternary", "1"].bits == rows["ternary", "1"].work_ms == rows["dense", "16"].work_ms == 0
    assert rows["ternary", "2"].work_ms > 0 and rows["powersgd", "16"].work_ms == rows["powersgd", "2"].work_ms > 0
    monkeypatch.setattr(bench, "measured", lambda *_: pytest.fail("measured again"))
    bench.main()
    monkeypatch.setattr(sys, "argv", [*args, "--table"])
    capsys.readouterr()
    bench.main()
    told = capsys.readouterr().out
    assert (
        told.startswith("| workers | | 1 | 2 | 16 |") and "(**a model**, milliseconds of an iteration of lenet" in told
    )
    assert told.count("| ternary |") == len(scale_rows.LINKS)


def test_processes_wait_for_the_throttle(nursery: Nursery, tmp_path: Path) -> None:
    """Each message takes its time at least, and the model says no less."""
    code = f"""
import pickle, sys
from pathlib import Path
sys.path[:0] = [{str(TOP / "scripts")!r}, {str(TOP / "scripts" / "bench")!r}]
from bench import scale
from tests.solver import ranks
scale.THROTTLE = 1e9
ranks.fork(Path({str(tmp_path)!r}), 2, {{"found": lambda root, group: scale.throttled(group, 1)}})
"""
    done = nursery.run("-c", code, cwd=TOP, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stderr) == (0, "")
    found = pickle.loads((tmp_path / "results_2.pickle").read_bytes())["found"]
    assert [one["scheme"] for one in found] == list(scale_rows.SCHEMES)
    least = {"dense": 32 * 431_080 / 1e6, "bf16": 16 * 431_080 / 1e6, "ternary": 2 * 431_080 / 1e6}  # ms of 1 Gbit/s
    for one in found:
        assert min(one["modelled_ms"], one["measured_ms"]) > least.get(one["scheme"], 0) + 1e3 * bench.DELAY


def test_checks_stand_beside_the_model() -> None:
    rows = [replace(ROW, scheme=scheme) for scheme in scale_rows.SCHEMES]
    check = Check("2026-12-01", "EPYC", "lenet", "4", "dense", "4", "100 Mbit/s, 1 ms", 200.0, 230.0)
    assert "| 4 | dense | 200 | 230 | +15% |" in scale_rows.tables(rows, [check])


def test_the_page_has_the_tables_of_the_files() -> None:
    folder = TOP / "scripts" / "bench"
    rows, checks = bench.kept.read(folder / "scale.csv", Row), bench.kept.read(folder / "scale_check.csv", Check)
    page = (folder / "README.md").read_text()
    start = page.index("<!-- scale.py -->") + len("<!-- scale.py -->")
    assert page[start : page.index("<!-- end -->", start)].strip() == scale_rows.tables(rows, checks).strip()


def test_an_unknown_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py", str(tmp_path / "out.csv"), "--nets", "vgg"])
    with pytest.raises(SystemExit, match="--nets has 'vgg'; expected of: lenet, alexnet"):
        bench.main()
