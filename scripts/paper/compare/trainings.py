"""The trainings that arms share: a base, trained on in one way or another, and fine-tuned once cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proximal
from arms import Arm
from nets import Study, net_text
from rows import accuracies_into, resumable

import forcereg
from forcereg.system.files import write_text


class Trainings:
    """One net at one seed; its snapshots are in runs/NET_SEED."""

    def __init__(self, name: str, study: Study, seed: int) -> None:
        self.name, self.study, self.seed = name, study, seed
        self.folder = Path("runs") / f"{name}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

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

    def solver_file(self) -> Path:
        """The solver with the net as it is trained here, for what needs training batches."""
        path = Path(self.study.solver).with_name(f"compare_{self.name}_{self.seed}_solver.prototxt")
        lines = [line for line in Path(self.study.solver).read_text().splitlines() if not line.startswith("net:")]
        write_text(path, "\n".join([f'net: "{self.net()}"', f"random_seed: {self.seed}", *lines, ""]))
        return path

    def base(self, arm: Arm | None = None) -> Path:
        """The weights of the first training, which has an arm's force if there is one."""
        prefix, force, view = "base", {}, "FILTERS"
        if arm:
            prefix, force, view = f"{self.prefix(arm)}_base", arm.fields(self.study.iterations), arm.view
        fields = {**self.settings(prefix), **force, **self.study.base, "net": str(self.net(view)), "snapshot": 1000}
        done = self.folder / f"{prefix}_iter_{self.study.iterations}.caffemodel.h5"
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
        base = start = self.base(arm if arm.afresh else None)
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


def macs(net: Path) -> int:
    """Of one image in its TEST phase."""
    return int(forcereg.summary(net).macs or 0)


def base_lr(solver: str) -> float:
    """What the solver's file says."""
    return float(next(line.split()[1] for line in Path(solver).read_text().splitlines() if line.startswith("base_lr")))
