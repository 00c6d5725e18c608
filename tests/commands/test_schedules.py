"""Rates beyond Caffe's, averaged weights and the range test, on the digits, by the command line."""

from __future__ import annotations

import re

import pytest

from tests.commands.run_control import Runs

EACH = ("--set", "display=1", "--set", "snapshot=0", "--max-iter", "12", "--set", "test_interval=4")


def rates(tiny: Runs) -> list[float]:
    return [event["rate"] for event in tiny.events("rate")]


def last_test(tiny: Runs) -> dict[str, float]:
    return {output["name"]: output["value"] for output in tiny.events("test")[-1]["outputs"]}


def test_the_rate_rises_and_falls_as_asked(tiny: Runs) -> None:
    tiny.train(*EACH, "--warmup", "4")
    assert rates(tiny) == pytest.approx([0.2 * share for share in (0.25, 0.4375, 0.625, 0.8125, *[1] * 8)], rel=1e-6)
    plain = last_test(tiny)
    told = tiny.train(*EACH, "--set", "lr_policy=onecycle", "--set", "pct_start=0.5")
    found = rates(tiny)
    assert "Learning Rate Policy: onecycle" in told
    assert found.index(max(found)) == 5 and found[5] == pytest.approx(0.2) and found[-1] < 1e-6
    assert last_test(tiny)["loss"] != plain["loss"]


def test_all_of_them_together_go_on_bit_for_bit(tiny: Runs) -> None:
    settings = "lr_policy=cosine eta_min=0.01 clip_gradients=20 weight_decay=0.001 max_iter=30"
    ask = [word for one in settings.split() for word in ("--set", one)]
    ask += ["--warmup", "6", "--ema", "0.9", "--keep-best", "accuracy_ema", "--patience", "9", "--keep", "3"]
    told = tiny.train(*ask)
    files = tiny.files("n_*")
    names = {
        f"n_iter_{at}{kind}.h5" for at in (10, 20, 30) for kind in (".caffemodel", ".solverstate", "_ema.caffemodel")
    }
    assert {*files} == names | {f"n_best{kind}.h5" for kind in (".caffemodel", ".solverstate", "_ema.caffemodel")}
    assert "Test net output #2: accuracy_ema = " in told
    scores = last_test(tiny)
    assert scores["accuracy_ema"] > 0.8 and scores["loss_ema"] != scores["loss"]
    best = max(
        output["value"]
        for event in tiny.events("test")
        for output in event["outputs"]
        if output["name"] == "accuracy_ema"
    )
    assert tiny.events("best")[-1]["value"] == best
    # the model that was averaged scores as the run said
    call = ("test", "--model", "net.prototxt", "--weights", "n_iter_30_ema.caffemodel.h5", "--iterations", "5")
    done = tiny.run_cli(*call, cwd=tiny.root)
    assert f"accuracy = {scores['accuracy_ema']:g}" in done.stdout
    for name in (one for one in names if "iter_10" not in one):
        (tiny.root / name).unlink()
    tiny.train(*ask, "--resume", "auto")
    assert tiny.files("n_iter*") == {name: data for name, data in files.items() if "best" not in name}


def test_the_range_test_finds_a_rate_and_leaves_nothing(tiny: Runs) -> None:
    pytest.importorskip("matplotlib", reason="draws the curve")
    before = tiny.files("*")
    done = tiny.run_cli("lr-find", "--solver", "solver.prototxt", "-o", "lr.svg", cwd=tiny.root)
    assert done.returncode == 0, done.stderr
    found = re.search(r"suggestion, the lower of them: base_lr: (\S+)\nwrote lr.svg", done.stdout)
    assert found is not None and 1e-4 < float(found[1]) < 1
    drawn = (tiny.root / "lr.svg").read_bytes()
    assert drawn.startswith(b"<?xml") and tiny.files("*") == {**before, "lr.svg": drawn}
