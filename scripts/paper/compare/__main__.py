"""Nets trained on in different ways, then cut and fine-tuned alike: who keeps what, by which method, at a cost.

    cd FOLDER
    python SCRIPTS/paper/compare NET --seed 1 --arms none,Degradation:1e-3:half --methods pca,vh --budgets 0.35

FOLDER holds the shipped examples with their data (`forcereg configs copy`, `forcereg data`) and takes snapshots; each
finished row goes to --csv (results/NET_SEED.csv) at once, and what is there isn't done again. One thread, net, seed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from arms import Arm, arm_of
from nets import STUDIES, Study
from rows import add_row, made_by
from trainings import Trainings, macs
from words import several, shares_in

import forcereg
from forcereg.lowrank.choosers import chooser
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ladder import aware

COLUMNS = (
    "net", "seed", "arm", "iterations", "whole", "whole_tuned", "method", "choose", "budget", "teacher", "macs",
    "params", "ranks", "cut", "tuning", "tuned", "seconds", "version", "torch", "date", "machine", "command",
)  # fmt: skip
SHOWN = ("arm", "whole", "method", "choose", "budget", "teacher", "ranks", "cut", "tuned")


class Comparison(Trainings):
    """The rows of one net at one seed."""

    def __init__(self, name: str, study: Study, seed: int, out: Path, version: str) -> None:
        super().__init__(name, study, seed)
        self.out, self.version = out, version
        self.own = {"net": name, "seed": str(seed), "iterations": f"{study.iterations}+{study.on}"}
        # one file may hold several nets, seeds and tries
        rows = list(csv.DictReader(out.read_text().splitlines())) if out.exists() else []
        self.rows = [row for row in rows if all(row[key] == value for key, value in self.own.items())]

    def run(self, arm: Arm, points: list[dict[str, Any]]) -> None:
        """All points of an arm that aren't there yet."""
        points = [point for point in points if not self.known(arm, point)]
        if not points:
            return
        weights = self.train_on(arm)
        whole = self.whole(arm, weights)
        for point in points:
            self.point(arm, point, weights, whole)

    def known(self, arm: Arm, point: Mapping[str, Any]) -> dict[str, str] | None:
        """Its row."""
        asked = {"arm": arm.word, **{key: str(value) for key, value in point.items()}}
        return next((row for row in self.rows if all(row[key] == value for key, value in asked.items())), None)

    def whole(self, arm: Arm, weights: Path) -> tuple[float, float]:
        """The accuracy of an arm's whole net, and fine-tuned as long as the cut ones."""
        known = next((row for row in self.rows if row["arm"] == arm.word), None)
        if known:
            return float(known["whole"]), float(known["whole_tuned"])
        return self.tune("whole", str(self.whole_net(arm)), str(weights))

    def whole_net(self, arm: Arm) -> Path:
        """The net of an arm before the cut, which clipping has made one of chains."""
        if arm.kind != "clip":
            return self.net(arm.view)
        prefix = self.prefix(arm)
        return next(self.folder.glob(f"{prefix}*_clipped.prototxt"), self.folder / "chains.prototxt")

    def point(self, arm: Arm, point: Mapping[str, Any], weights: Path, whole: tuple[float, float]) -> None:
        """Cuts, fine-tunes, writes a row."""
        begun = time.monotonic()
        # the default isn't named
        choose = {} if point["choose"] == "energy" else {"choose": point["choose"]}
        aware = None
        method = point["method"]
        if method.startswith("aware-"):
            method, aware = method.removeprefix("aware-"), 20
        data = str(self.solver_file()) if aware or point["choose"] == "responses" or self.study.recalibrate else None
        # shares are of the net that was trained first, whatever clipping has left of it
        total = macs(self.net())
        share = min(1.0, float(point["budget"]) * total / macs(self.whole_net(arm)))
        row: dict[str, Any] = dict.fromkeys(("macs", "params", "ranks", "cut", "tuned"), "")
        try:
            made = forcereg.decompose(
                weights, rule=forcereg.MaxMacs(share, **choose), method=method, layers="*conv*",
                data=data, data_aware=aware, recalibrate=self.study.recalibrate,
            )  # fmt: skip
        except forcereg.UsageError as error:  # a budget that the method can't reach is a finding, too
            print(f"{arm.word} {method} {point['budget']}: {error}", file=sys.stderr)
        else:
            net = made.report["net"]
            ranks = " ".join(f"{one['name']}={'-'.join(map(str, one['ranks']))}" for one in made.report["layers"])
            alike = {key: point[key] for key in ("method", "teacher")}
            if same := self.known(arm, {**alike, "ranks": ranks}):  # another budget or chooser made this very net
                cut, tuned = float(same["cut"]), float(same["tuned"])
            else:
                teacher = weights if point["teacher"] == "yes" else None
                cut, tuned = self.tune("cut", **made.write(self.folder / "cut"), teacher=teacher)
            row = {
                "macs": net["macs_after"] / total, "params": net["params_after"],
                "ranks": ranks, "cut": cut, "tuned": tuned,
            }  # fmt: skip
        self.write({
            **self.own, "arm": arm.word,
            "whole": whole[0], "whole_tuned": whole[1], **point, **row, "tuning": self.study.tuning,
            "seconds": round(time.monotonic() - begun), **made_by(self.version),
        })  # fmt: skip

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the file."""
        told = add_row(self.out, COLUMNS, row)
        self.rows.append(told)
        print(" ".join(f"{key}={told[key]}" for key in SHOWN))


def arms_in(text: str) -> list[Arm]:
    """Those of words with commas."""
    try:
        return [arm_of(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    methods = [*factorizer, *(f"aware-{method}" for method in aware())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=STUDIES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--arms", type=arms_in, default="none", help="see arms.py")
    parser.add_argument("--methods", type=several(methods), default="pca")
    parser.add_argument("--budgets", type=shares_in, default="0.35", help="shares of the net's MACs")
    parser.add_argument("--choose", type=several(list(chooser)), default="energy")
    parser.add_argument("--teacher", type=several(["no", "yes"]), default="no", help="no, yes or no,yes")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--version", default="", help="the commit that runs")
    parser.add_argument("--scale", type=float, default=1, help="of all iterations, for a try")
    parser.add_argument("--tuned-at", type=float, help="fine-tuning's rate in base_lr's, in a --csv of its own")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.csv or Path("results") / f"{asked.net}_{asked.seed}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    study = STUDIES[asked.net].scaled(asked.scale)
    if asked.tuned_at is not None:
        study = replace(study, tuned_at=asked.tuned_at)
    comparison = Comparison(asked.net, study, asked.seed, out, asked.version)
    every = itertools.product(asked.methods, asked.budgets, asked.choose, asked.teacher)
    points = [dict(zip(("method", "budget", "choose", "teacher"), one, strict=True)) for one in every]
    for arm in asked.arms:
        comparison.run(arm, points)


if __name__ == "__main__":
    main()
