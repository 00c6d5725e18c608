"""A small net on scikit-learn's digits, which learns in a moment, and runs of it by the command line as processes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import RunCli

NET = """
name: "tiny"
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 } data_param { source: "ROOT/mnist_train_lmdb" batch_size: 16 backend: LMDB } }
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00390625 } data_param { source: "ROOT/mnist_test_lmdb" batch_size: 60 backend: LMDB } }
layer { name: "drop" type: "Dropout" bottom: "data" top: "data" dropout_param { dropout_ratio: 0.2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "sum" type: "Reduction" bottom: "ip" top: "sum" include { phase: TEST stage: "sums" } }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.2 momentum: 0.9 lr_policy: "fixed" solver_mode: CPU random_seed: 1
test_iter: 5 test_interval: 5 display: 5 max_iter: 30 snapshot: 10 snapshot_prefix: "n" snapshot_format: HDF5
"""


@dataclass
class Runs:
    """`forcereg train` in a folder with net and solver, as processes."""

    root: Path
    run_cli: RunCli

    def train(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """What a run says, without the prefixes of its lines; its events are in `log`."""
        call = ("train", "--solver", "solver.prototxt", "--log-json", "log", *args)
        done = self.run_cli(*call, cwd=self.root, env=env or {})
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return re.sub(r"^[IW]\d{4} .*?\] ", "", done.stderr, flags=re.MULTILINE)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those of the last run."""
        found = map(json.loads, (self.root / "log").read_text().splitlines())
        return [event for event in found if event["event"] == kind]

    def files(self, pattern: str) -> dict[str, bytes]:
        """The bytes of files."""
        return {path.name: path.read_bytes() for path in self.root.glob(pattern)}


def runs(root: Path, digits: Path, run_cli: RunCli, more: str = "") -> Runs:
    """Net and solver in `root`; `more` fields."""
    (root / "net.prototxt").write_text(NET.replace("ROOT", str(digits)))
    (root / "solver.prototxt").write_text(SOLVER + more)
    return Runs(root, run_cli)
