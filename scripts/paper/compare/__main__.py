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
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import proximal
import torch
from arms import Arm, arm_of
from nets import STUDIES, Study, net_text
from rows import accuracies_into, add_row, made_by, resumable

import forcereg
from forcereg.lowrank.choosers import chooser
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ladder import aware
from forcereg.system.files import write_text

COLUMNS = (
    "net", "seed", "arm", "iterations", "whole", "whole_tuned", "method", "choose", "budget", "teacher", "macs",
    "params", "ranks", "cut", "tuning", "tuned", "seconds", "version", "torch", "date", "machine", "command",
)  # fmt: skip
SHOWN = ("arm", "whole", "method", "choose", "budget", "teacher", "ranks", "cut", "tuned")


class Comparison:
    """One net at one seed."""

    def __init__(self, name: str, study: Study, seed: int, out: Path, version: str) -> None:
        self.name, self.study, self.seed, self.out = name, study, seed, out
        self.folder = Path("runs") / f"{name}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.version = version
        self.own = {"net": name, "seed": str(seed), "iterations": f"{study.iterations}+{study.on}"}
        # one file may hold several nets, seeds and tries
        rows = list(csv.DictReader(out.read_text().splitlines())) if out.exists() else []
        self.rows = [row for row in rows if all(row[key] == value for key, value in self.own.items())]

    # -- training

    def settings(self, prefix: str) -> dict[str, Any]:
        """What all trainings share."""
        quiet = {"display": 500, "snapshot_format": "HDF5", "snapshot_prefix": str(self.folder / prefix)}
        return {**quiet, "solver_mode": "CPU", "force_decay": 0.0, "test_iter": [self.study.tests]}

    def prefix(self, arm: Arm) -> str:
        """How an arm's snapshots begin."""
        return arm.word.replace(":", "_")

    def net(self, view: str = "FILTERS") -> Path:
        """The net's file, with the force along a view."""
        text = net_text(self.study)
        if view != "FILTERS":
            text = text.replace("force_mult: 1", f"force_mult: 1 force_view: {view}")
        # beside the original, where its data is looked for
        path = Path(self.study.net).with_name(f"compare_{self.name}_{view}.prototxt")
        write_text(path, text)
        return path

    def base(self) -> Path:
        """The weights of the first training."""
        fields = {**self.settings("base"), **self.study.base, "net": str(self.net()), "snapshot": 1000}
        done = self.folder / f"base_iter_{self.study.iterations}.caffemodel.h5"
        if not done.exists():
            forcereg.train(
                self.study.solver, set=fields, seed=self.seed, max_iter=self.study.iterations, resume=True, keep=1
            )
        return done

    def train_on(self, arm: Arm) -> Path:
        """The weights of an arm."""
        prefix, on = self.prefix(arm), self.study.on
        done = self.folder / f"{prefix}_iter_{on}.caffemodel.h5"
        if done.exists():
            return done
        base = start = self.base()
        asked: dict[str, Any] = {}
        multiples = [multiple for multiple, _ in self.study.rates]
        fields = {
            **self.settings(prefix), **arm.fields(on), "lr_policy": "multistep", "power": 0.0,
            "base_lr": base_lr(self.study.solver) * multiples[0], "gamma": multiples[1] / multiples[0],
            "stepvalue": [round(share * on) for _, share in self.study.rates[1:]], "net": str(self.net(arm.view)),
            "test_interval": on // 2, "snapshot": on // 4,
        }  # fmt: skip
        clipping = None
        if arm.kind == "nuclear":
            asked = {"nuclear": arm.strength}
        elif arm.kind == "exact":
            made = forcereg.decompose(base, rule=forcereg.MaxMacs(arm.strength))
            ranks = {layer["name"]: layer["rank"] for layer in made.report["layers"]}
            asked = {"ranks": ranks, "end": on // 2}
        elif arm.kind == "clip":
            made = forcereg.decompose(base, rule=forcereg.MaxError(0.0), even_if_dearer=True, layers="*conv*")
            files = made.write(self.folder / "chains")
            fields["net"], start, clipping = files["model"], Path(files["weights"]), arm.strength
            fields["test_interval"] = on // 10
        begun = resumable(self.folder, prefix)
        with proximal.asking(**asked):
            forcereg.train(
                self.study.solver, set=fields, weights=None if begun else start, seed=self.seed, max_iter=on,
                resume=begun, keep=1, rank_clipping=clipping,
                clip_until=None if clipping is None else on // 2,
            )  # fmt: skip
        return done

    def tune(self, prefix: str, model: str, weights: str, teacher: Path | None = None) -> tuple[float, float]:
        """The accuracies before and after fine-tuning."""
        found: list[float] = []
        study = self.study
        fields = {
            **self.settings(prefix), "lr_policy": "fixed", "base_lr": base_lr(study.solver) * study.tuned_at,
            "snapshot": 0, "snapshot_after_train": False, "test_interval": study.tuning, "stepvalue": [],
        }  # fmt: skip
        forcereg.finetune(
            study.solver, model=model, weights=weights, set=fields, seed=self.seed, max_iter=study.tuning,
            observer=accuracies_into(found), teacher=teacher,
        )  # fmt: skip
        return found[0], found[-1]

    # -- rows

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

    def solver_file(self) -> Path:
        """The solver with the net as it is trained here, for what needs training batches."""
        path = Path(self.study.solver).with_name(f"compare_{self.name}_{self.seed}_solver.prototxt")
        lines = [line for line in Path(self.study.solver).read_text().splitlines() if not line.startswith("net:")]
        write_text(path, "\n".join([f'net: "{self.net()}"', f"random_seed: {self.seed}", *lines, ""]))
        return path

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the file."""
        told = add_row(self.out, COLUMNS, row)
        self.rows.append(told)
        print(" ".join(f"{key}={told[key]}" for key in SHOWN))


def macs(net: Path) -> int:
    """Of one image in its TEST phase."""
    return int(forcereg.summary(net).macs or 0)


def base_lr(solver: str) -> float:
    """What the solver's file says."""
    return float(next(line.split()[1] for line in Path(solver).read_text().splitlines() if line.startswith("base_lr")))


def several(known: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an argument: words with commas, all of them among these."""

    def read(text: str) -> list[str]:
        words = text.split(",")
        if wrong := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return words

    return read


def arms_in(text: str) -> list[Arm]:
    """Those of words with commas."""
    try:
        return [arm_of(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def shares_in(text: str) -> list[str]:
    """Budgets with commas, as they were written."""
    for word in text.split(","):
        try:
            forcereg.MaxMacs(float(word))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no number") from None
        except forcereg.UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text.split(",")


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
    study = STUDIES[asked.net]
    if asked.scale != 1:
        least = {"iterations": 20, "on": 20, "tuning": 20, "tests": 3}
        counts = {name: max(low, round(getattr(study, name) * asked.scale)) for name, low in least.items()}
        study = replace(study, **counts)
    if asked.tuned_at is not None:
        study = replace(study, tuned_at=asked.tuned_at)
    comparison = Comparison(asked.net, study, asked.seed, out, asked.version)
    every = itertools.product(asked.methods, asked.budgets, asked.choose, asked.teacher)
    points = [dict(zip(("method", "budget", "choose", "teacher"), one, strict=True)) for one in every]
    for arm in asked.arms:
        comparison.run(arm, points)


if __name__ == "__main__":
    main()
