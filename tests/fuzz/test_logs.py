"""Logs of every kind, changed: curves and a picture, or one line, and never an error of ours."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from forcereg.errors import ForceregError
from forcereg.report.curves import read_run
from forcereg.report.plot import Look, draw
from forcereg.report.rank_shares import is_results, picture, read_shares
from tests.fuzz.hostile import mangled, variants
from tests.long_forms import Rounds
from tests.report.test_curves import CAFFE

PREFIX = "I0612 10:11:14.423456  4711 solver.cpp:239] "
GLOG = CAFFE + "".join(
    f"{PREFIX}{line}\n"
    for line in (
        "Iteration 200 (3.5 iter/s, 0.1s/100 iters), loss = 1.5e-3",
        "Iteration 200, rank of conv1 = 12 (was 14, keeps 0.9900)",
        "Iteration 200, Testing net (#0)",
        *(f"    Test net output #{index}: each = 0.{index}" for index in range(50)),
        "Snapshotting to HDF5 file s_iter_200.caffemodel.h5",
        "Optimization Done.",
    )
)
OUTPUTS = [
    {"name": "loss", "value": 2.5, "weight": 1.0},
    {"name": "each", "value": "nan"},
    {"name": "each", "value": 1},
]
EVENTS: list[dict[str, Any]] = [
    {"event": "start", "time": 1.5, "net": "LeNet"},
    {"event": "train", "iteration": 0, "loss": 2.5, "outputs": OUTPUTS},
    {"event": "rate", "iteration": 0, "rate": 0.1},
    {"event": "test", "iteration": 0, "net": 1, "outputs": OUTPUTS},
    {"event": "force", "iteration": 100, "layers": [{"layer": "conv1", "rank": 12, "cosine": 0.25, "ratio": 0.1}]},
    {"event": "ranks", "iteration": 100, "layers": [{"layer": "conv1", "rank": 12}]},
    {"event": "final", "iteration": 200, "loss": 0.5},
]
JSON = "".join(json.dumps(event) + "\n" for event in EVENTS)


def use(path: Path, kind: str | None) -> None:
    with contextlib.suppress(ForceregError):
        run = read_run(path)
        if kind is not None:
            assert draw([run, run], kind)


@pytest.mark.parametrize("text", [GLOG, JSON], ids=["glog", "json"])
def test_bytes_changed(text: str, tmp_path: Path, rounds: Rounds) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.log"
    for at, chance in enumerate(rounds(400)):
        path.write_bytes(mangled(chance, text.encode()))
        use(path, None if at % 100 else chance.choice(("svg", "png", "html", "pdf")))


def test_compressed_bytes_changed(tmp_path: Path, rounds: Rounds) -> None:
    path, data = tmp_path / "x.gz", gzip.compress(GLOG.encode(), mtime=0)
    for chance in rounds(200):
        path.write_bytes(mangled(chance, data))
        use(path, None)


def test_every_entry_of_events_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for event in EVENTS:
        for text in variants(event):
            path.write_text(f"{JSON}{text}\n{{}}\n")
            use(path, None)


RESULTS = """setting,a,seed,accuracy,layers,ranks_at_error,full_ranks,failed
a=1,1,1,0.5,conv1 conv/2,2/3,4/8,
a=2,2,1,0.75,conv1 conv/2,4/8,4/8,
a=2,2,2,,,,,diverged
"""


def test_results_changed(tmp_path: Path, rounds: Rounds) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.csv"
    for at, chance in enumerate(rounds(300)):
        path.write_bytes(mangled(chance, RESULTS.encode()))
        with contextlib.suppress(ForceregError):
            if is_results(path):
                runs = read_shares(path)
                assert at % 30 or picture(runs, chance.choice(("svg", "png", "pdf")), Look())


WORDS = (
    "Iteration ", ", loss = ", ", lr = ", "Testing net (#", ")", "    Test net output #", "    Train net output #",
    ": ", " = ", "rank of ", " (was ", " (* 1 = ", "Test loss: ", "[", "]", "$x$", "_a", "\\frac", "&lt;", "<b>",
    "\x1b[2J", "\u202e", "漢字", "\U0001f600", "0", "1", "100", "-1", "1e38", "1e39", "3.4e38", "-3.4e38", "1e-45",
    "nan", "-inf", "inf", "2147483647", "2147483648", "9" * 400, "loss", "accuracy", " ",
)  # fmt: skip


def line(chance: random.Random) -> str:
    return PREFIX + "".join(chance.choice(WORDS) for _ in range(chance.randint(1, 9)))


def likely(chance: random.Random) -> str:
    number, value = (chance.choice(WORDS[-20:]) for _ in range(2))
    return PREFIX + chance.choice(
        (
            f"Iteration {number}, loss = {value}",
            f"Iteration {number}, lr = {value}",
            f"Iteration {number}, Testing net (#{value})",
            f"    Test net output #{number}: {chance.choice(WORDS).strip()} = {value}",
            f"Iteration {number}, rank of {chance.choice(WORDS)} = {value}",
        )
    )


def test_lines_that_look_like_a_logs(tmp_path: Path, rounds: Rounds) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.log"
    for at, chance in enumerate(rounds(300)):
        path.write_text("\n".join(chance.choice((line, likely, likely))(chance) for _ in range(chance.randint(1, 60))))
        use(path, None if at % 60 else chance.choice(("svg", "png", "html", "pdf")))
