"""Every line that Caffe's users' scripts look for, against patterns written from what Caffe prints."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.solver.log import GlogWriter
from forcereg.system.events import Event
from tests.solver.nets import batches, regression

INTEGER = r"(0|[1-9]\d*)"
# what a C++ stream prints of a float: 6 significant digits, an exponent of two or more
VALUE = r"(-?\d{1,6}|-?\d+\.\d+|-?\d(\.\d{1,5})?e[+-]\d{2,3}|-?nan|-?inf)"
PREFIX = rf"[IWEF](0[1-9]|1[0-2])([0-2]\d|3[01]) \d\d:\d\d:\d\d\.\d{{6}} +{INTEGER} [\w.]+:{INTEGER}\] "
WEIGHTED = rf"( \(\* {VALUE} = {VALUE} loss\))?"

PATTERNS = {
    "start": r"Solving \w+",
    "policy": r"Learning Rate Policy: \w+",
    "test start": rf"Iteration {INTEGER}, Testing net \(#{INTEGER}\)",
    "test value": rf"    Test net output #{INTEGER}: \S+ = {VALUE}{WEIGHTED}",
    "test loss": rf"Test loss: {VALUE}",
    "train": rf"Iteration {INTEGER} \({VALUE} iter/s, {VALUE}s/{INTEGER} iters\), loss = {VALUE}",
    "last train": rf"Iteration {INTEGER}, loss = {VALUE}",
    "train value": rf"    Train net output #{INTEGER}: \S+ = {VALUE}{WEIGHTED}",
    "rate": rf"Iteration {INTEGER}, lr = {VALUE}",
    "multistep": rf"MultiStep Status: Iteration {INTEGER}, step = {INTEGER}",
    "binary model": r"Snapshotting to binary proto file \S+_iter_\d+\.caffemodel",
    "binary state": r"Snapshotting solver state to binary proto file \S+_iter_\d+\.solverstate",
    "model": r"Snapshotting to HDF5 file \S+_iter_\d+\.caffemodel\.h5",
    "state": r"Snapshotting solver state to HDF5 file \S+_iter_\d+\.solverstate\.h5",
    # ours, in no form that scripts take for another
    "left": r"    Time left: about (\d+ days?, )?\d+:\d\d:\d\d",
    "restore": r"Restoring previous solver status from \S+",
    "weights": r"Finetuning from \S+",
    "ignored": r"Ignoring source layer \S+",
    "loaded": r"(Loaded layers|Layers left as initialised): .+",
    "forward": rf"    \[Forward\] Layer \w+, (top|param) blob \w+ data: {VALUE}",
    "backward": rf"    \[Backward\] Layer \w+, (bottom|param) blob \w+ diff: {VALUE}",
    "all": r"    \[Backward\] All net params \(data, diff\): "
    + "; ".join(rf"L{p} norm = \({VALUE}, {VALUE}\)" for p in (1, 2)),
    "early": r"Optimization stopped early\.",
    "done": r"Optimization Done\.",
}

NET = """
name: "regression"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Reduction" bottom: "ip" top: "sum" }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" loss_weight: 0.5 }
"""

EXTRA = (
    "test_iter: 2 test_iter: 1 test_interval: 2 test_compute_loss: true display: 1 max_iter: 3 snapshot: 2 "
    'snapshot_prefix: "s" lr_policy: "multistep" gamma: 0.1 stepvalue: 1 debug_info: true snapshot_format: '
)


def log_of(root: Path, form: str, extra: str = "") -> list[str]:
    """All lines of a run from given weights, of its resume, and of a stop."""
    root.mkdir()
    values = {"ip": {0: np.ones((2, 3)), 1: np.zeros(2)}, "elsewhere": {0: np.zeros(1)}}
    snapshot.write_model(root / "start.h5", values)
    stream = io.StringIO()
    solver, _ = regression(root, EXTRA + form + extra, net=NET)
    solver.observers = [GlogWriter(stream)]
    solver.load_weights(root / "start.h5")
    solver.solve(batches)
    solver.restore(next(root.glob("s_iter_2.solverstate*")))
    solver.param.max_iter = 5
    solver.stop_requested = True
    solver.solve(batches)
    return stream.getvalue().splitlines()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("lines")
    return log_of(root / "h5", "HDF5") + log_of(root / "binary", "BINARYPROTO")


def kind(line: str) -> str:
    """The one pattern that a line matches."""
    (found,) = [name for name, pattern in PATTERNS.items() if re.fullmatch(PREFIX + pattern, line)] or [line]
    return found


def test_each_line_is_one_of_caffes_and_each_of_caffes_comes(lines: list[str]) -> None:
    counts = Counter(map(kind, lines))
    assert counts.keys() == PATTERNS.keys()
    # an iteration's line, of two nets' tests one start each, two outputs and a loss for each test
    assert counts["train"] == counts["rate"] == 2 * 3
    assert counts["train value"] == 2 * 2 * 3
    assert counts["test start"] == 2 * (2 * 2 + 1)
    assert (counts["test value"], counts["test loss"]) == (2 * 4 * 2, 2 * 4)
    assert (counts["last train"], counts["multistep"], counts["done"], counts["early"]) == (2, 2, 2, 2)


def test_levels(lines: list[str]) -> None:
    for line in lines:
        assert line[0] == ("E" if kind(line) == "all" else "I")


def test_debug_lines_in_caffes_order(lines: list[str]) -> None:
    """Behind the iteration's tests forwards from the data on, then backwards, then the summary, then the loss."""
    start = next(i for i, line in enumerate(lines) if kind(line) == "train")
    before = [re.sub(r": [^:]*$", "", line.partition("] ")[2]) for line in lines[:start]]
    first = max(i for i, line in enumerate(before) if "Test net output" in line) + 1
    split = "[Forward] Layer ip_ip_0_split, top blob ip_ip_0_split_"
    assert [line.strip() for line in before[first:]] == [
        "[Forward] Layer ip, top blob ip data",
        "[Forward] Layer ip, param blob 0 data",
        "[Forward] Layer ip, param blob 1 data",
        f"{split}0 data",
        f"{split}1 data",
        "[Forward] Layer sum, top blob sum data",
        "[Forward] Layer loss, top blob loss data",
        "[Backward] Layer loss, bottom blob ip_ip_0_split_1 diff",
        "[Backward] Layer ip_ip_0_split, bottom blob ip diff",
        "[Backward] Layer ip, param blob 0 diff",
        "[Backward] Layer ip, param blob 1 diff",
        "[Backward] All net params (data, diff)",
    ]


def test_not_a_number_is_still_printed() -> None:
    """parse_log.py passes over such a value; ours and people's eyes don't."""
    stream = io.StringIO()
    GlogWriter(stream)(Event("final", {"iteration": 3, "loss": float("nan")}))
    assert kind(stream.getvalue().rstrip()) == "last train"
