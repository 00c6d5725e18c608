"""LeNet made small by low rank, by structured sparsity, and by force, low rank and sparsity together, at equal MACs.

    cd FOLDER
    python SCRIPTS/sparse_lowrank.py --seed 1 [--ways cut,lasso] [--budgets 0.25,0.15]

cut              cut by `decompose` to the budget
force+cut        the same, with the paper's force until half time
lasso            group lasso on rows and channels, until what `shrink` leaves is in the budget
cut+lasso        at a quarter of the time cut by `decompose` to 0.4 of the MACs, then lasso on the factors
force+cut+lasso  the same, with the force until that cut

All but the classifier is cut. The base is compare's; each way trains on for the same iterations at the same rates, and
all are fine-tuned alike. The lasso grows from step to step, so that one training passes all budgets; where `shrink`
first comes to one, looked for every 25 iterations, the zeros are frozen and the iterations left go on without lasso.
FOLDER: see compare/. Each finished row goes to --csv (results/sparse_lowrank_SEED.csv) at once; what is there isn't
done again. One thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "compare"))

import torch
from arms import arm_of
from nets import STUDIES, Study
from rows import add_row, made_by
from sparse_net import TYPES, weights
from trainings import Trainings, base_lr, macs
from words import several, shares_in

import forcereg
from forcereg.errors import ForceregError
from forcereg.net.load import shape_net
from forcereg.schema import LayerParameter
from forcereg.schema.text import read_net, to_text
from forcereg.system.files import write_text

WAYS = ("cut", "force+cut", "lasso", "cut+lasso", "force+cut+lasso")
FORCE, MILD = "Degradation:1e-3", 0.4
CLASSIFIER = "ip2"
LASSO = (0.004, 0.016)
"""block_group_decay in the first and the last step of a way that has lasso from the start on."""
STEPS, LOOKS = 12, 20
"""Of all iterations, of which lasso has at most three quarters; of a step, looks at what is left."""
COLUMNS = (
    "seed", "iterations", "way", "budget", "macs", "params", "left", "lasso", "until", "cut", "tuning", "tuned",
    "seconds", "version", "torch", "date", "machine", "command",
)  # fmt: skip
SHOWN = ("way", "budget", "macs", "left", "lasso", "until", "cut", "tuned")


@dataclass(frozen=True)
class Made:
    """A net in the budget: its files, cost, layers' ranks or shapes, and the lasso's strength and last iteration."""

    files: Mapping[str, str]
    report: Mapping[str, Any]
    left: str
    lasso: str = ""
    until: str = ""


class Small(Trainings):
    """LeNet at one seed, made small."""

    def __init__(self, study: Study, seed: int, budgets: Sequence[str]) -> None:
        super().__init__("lenet", study, seed)
        self.budgets = budgets

    def made(self, way: str, budget: str) -> Made:
        """The net of that way, trained on and in that budget. Raises UsageError where it can't be."""
        if "lasso" in way:
            return self.frozen(way, budget)
        weights = self.train_on(arm_of(f"{FORCE}:half" if "force" in way else "none"))
        return self.lowrank(weights, float(budget), "cut")

    def lowrank(self, weights: Path, share: float, name: str) -> Made:
        """Cut by `decompose` to a share of the MACs."""
        made = forcereg.decompose(
            weights, rule=forcereg.MaxMacs(share, choose="responses"), data=str(self.solver_file()), fc=True,
            except_layers=[CLASSIFIER],
        )  # fmt: skip
        left = " ".join(f"{one['name']}={'-'.join(map(str, one['ranks']))}" for one in made.report["layers"])
        return Made(made.write(self.folder / name), made.report["net"], left)

    # -- lasso

    def start(self, way: str) -> tuple[Path, Path, int]:
        """Net, weights and iteration at which the lasso begins."""
        if way == "lasso":
            return self.net(), self.base(), 0
        at = self.study.on // 4
        prefix = f"{way}_start"
        done = self.folder / f"{prefix}_iter_{at}.caffemodel.h5"
        if not done.exists():
            force = arm_of(FORCE if "force" in way else "none").fields(at)
            self.train(prefix, at, self.base(), {**force, "net": str(self.net())})
        files = self.lowrank(done, MILD, f"{way}_start").files
        return Path(files["model"]), Path(files["weights"]), at

    def frozen(self, way: str, budget: str) -> Made:
        """The lasso's net where it comes to the budget, trained on without it under its zeros' masks."""
        model, begun, at = self.start(way)
        found = self.passed(way, model, begun, at).get(budget)
        if found is None:
            raise forcereg.UsageError(f"the lasso doesn't come to {budget} of the MACs")
        prefix, on = f"{way}_{budget}", self.study.on
        rest = on - at - found["iteration"]
        done = self.folder / f"{prefix}_iter_{rest}.caffemodel.h5"
        if not done.exists():
            masked = self.sparse(model, "masked", frozen=True)
            self.train(prefix, rest, Path(found["weights"]), {"net": str(masked)}, fall=rest - on // 4)
        strength, until = (f"{found[key]:.6g}" for key in ("lasso", "iteration"))
        made = shrunk(done)
        if made is None:  # the mild cut alone was in the budget
            cost = forcereg.summary(model)
            whole = {"macs_after": cost.macs, "params_after": cost.params}
            return Made({"model": str(model), "weights": str(done)}, whole, "", strength, until)
        # what is gone is gone with a branch: LeNet has none
        left = " ".join(f"{one['name']}={'x'.join(map(str, one['after']))}" for one in made.report["layers"])
        return Made(made.write(self.folder / "shrunk"), made.report["net"], left, strength, until)

    def passed(self, way: str, model: Path, begun: Path, at: int) -> dict[str, dict[str, Any]]:
        """Budget -> the first snapshot whose zeros leave no more, for all that the lasso comes to."""
        prefix = f"{way}_lasso_{'_'.join(self.budgets)}"
        noted = self.folder / f"{prefix}.json"
        found: dict[str, dict[str, Any]] = json.loads(noted.read_text()) if noted.exists() else {}
        lasso = self.sparse(model, "lasso", frozen=False)
        for end, strength in self.steps(at):
            if len(found) == len(self.budgets):
                break
            fields = {"net": str(lasso), "block_group_decay": strength, "weight_decay": 0, "snapshot": self.look}
            self.train(prefix, end, begun, fields, keep=None)
            for iteration, path in self.looked_at(prefix, end):
                made = shrunk(path)
                left = macs(model) if made is None else made.report["net"]["macs_after"]
                share = left / macs(self.net())
                print(f"{way}: lasso {strength:.3g} at {iteration}: {share:.3f} of the MACs", flush=True)
                met = [one for one in self.budgets if one not in found and share <= float(one)]
                found |= {one: {"iteration": iteration, "lasso": strength, "weights": str(path)} for one in met}
            write_text(noted, json.dumps(found))
            self.clear(prefix, {end, *(one["iteration"] for one in found.values())})
        return found

    def steps(self, at: int) -> Iterator[tuple[int, float]]:
        """Iteration of the lasso at which each step ends, and its strength: always the same ratio to the one before."""
        step, (first, last) = self.study.on // STEPS, LASSO
        count = (self.study.on * 3 // 4 - at) // step
        for index in range(count):
            yield (index + 1) * step, first * (last / first) ** (index / max(1, count - 1))

    @property
    def look(self) -> int:
        """Iterations from one look at what is left to the next."""
        return max(1, self.study.on // STEPS // LOOKS)

    def looked_at(self, prefix: str, end: int) -> list[tuple[int, Path]]:
        """The snapshots of the step that ends there, by iteration."""
        begin = end - self.study.on // STEPS
        every = (
            (at, self.folder / f"{prefix}_iter_{at}.caffemodel.h5")
            for at in range(begin + self.look, end + 1, self.look)
        )
        return [(at, path) for at, path in every if path.exists()]

    def clear(self, prefix: str, kept: Collection[int]) -> None:
        """Removes all but some of the snapshots."""
        for path in self.folder.glob(f"{prefix}_iter_*.h5"):
            if int(path.name.rpartition("_iter_")[2].partition(".")[0]) not in kept:
                path.unlink()

    def train(
        self, prefix: str, end: int, weights: Path, fields: Mapping[str, Any], fall: int | None = None,
        keep: int | None = 1,
    ) -> None:  # fmt: skip
        """To iteration `end`, from weights or where it was left off; the rate falls to a tenth at `fall`."""
        rate = base_lr(self.study.solver)
        asked = {
            **self.settings(prefix), "lr_policy": "multistep", "base_lr": rate, "gamma": 0.1,
            "stepvalue": [] if fall is None else [fall], "test_interval": end, "test_initialization": False,
            "snapshot": max(1, self.study.on // 4), **fields,
        }  # fmt: skip
        solver = self.study.solver
        forcereg.train(solver, set=asked, weights=weights, seed=self.seed, max_iter=end, resume=True, keep=keep)

    def sparse(self, model: Path, kind: str, frozen: bool) -> Path:
        """The net with its zeros' masks, or with group lasso on rows and channels of all but classifier and data."""
        file = read_net(model)
        shapes = shape_net(model, "TRAIN", 0, ())
        inputs = {top for layer in file.message.layer if not layer.bottom for top in layer.top}
        for layer in file.message.layer:
            if layer.type not in TYPES:
                continue
            if frozen:
                layer.connectivity_mode = LayerParameter.DISCONNECTED_GRPWISE
                continue
            shape = shapes.params[layer.name][0].shape
            rows, columns = shape[0], shape[1:].numel()
            blocks = weights(layer).block_group_lasso
            if layer.name != CLASSIFIER:
                blocks.add(xdimen=columns, ydimen=1)
            if layer.name != CLASSIFIER and layer.bottom[0] not in inputs:
                blocks.add(xdimen=columns // shapes.shapes[layer.bottom[0]][1], ydimen=rows)
        path = Path(self.study.net).with_name(f"sparse_lowrank_{self.seed}_{model.stem}_{kind}.prototxt")
        write_text(path, to_text(file.message))
        return path


def shrunk(snapshot: Path) -> Any:
    """What `shrink` makes of it, None where there is nothing to cut."""
    try:
        return forcereg.shrink(snapshot)
    except ForceregError as error:
        if "nothing to cut" in str(error):
            return None
        raise


def run(small: Small, ways: Sequence[str], out: Path, version: str) -> None:
    """A row for each way and budget that has none."""
    study = small.study
    own = {"seed": str(small.seed), "iterations": f"{study.iterations}+{study.on}"}
    rows = list(csv.DictReader(out.read_text().splitlines())) if out.exists() else []
    total = macs(small.net())
    for way in ways:
        for budget in small.budgets:
            asked = {**own, "way": way, "budget": budget}
            if any(all(row[key] == value for key, value in asked.items()) for row in rows):
                continue
            begun = time.monotonic()
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            try:
                made = small.made(way, budget)
            except forcereg.UsageError as error:  # a finding, too
                print(f"{way} {budget}: {error}", file=sys.stderr)
            else:
                cut, tuned = small.tune("tuned", made.files["model"], made.files["weights"])
                row |= {
                    "macs": made.report["macs_after"] / total, "params": made.report["params_after"],
                    "left": made.left, "lasso": made.lasso, "until": made.until, "cut": cut, "tuned": tuned,
                }  # fmt: skip
            seconds = round(time.monotonic() - begun)
            row |= {**asked, "tuning": study.tuning, "seconds": seconds, **made_by(version)}
            told = add_row(out, COLUMNS, row)
            print(" ".join(f"{key}={told[key]}" for key in SHOWN), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", type=several(WAYS), default=",".join(WAYS))
    parser.add_argument("--budgets", type=shares_in, default="0.25,0.15", help="shares of the net's MACs")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--version", default="", help="the commit that runs")
    parser.add_argument("--scale", type=float, default=1, help="of all iterations, for a try")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.csv or Path("results") / f"sparse_lowrank_{asked.seed}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    run(Small(STUDIES["lenet"].scaled(asked.scale), asked.seed, asked.budgets), asked.ways, out, asked.version)


if __name__ == "__main__":
    main()
