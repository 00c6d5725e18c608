"""What a script's nets came to: OUT/NAME.csv with every number, and a table of it.

    python scripts/paper/phases.py NAME [--score OUTPUT]

Run in OUT: reads baseline.log, the runs of `forcereg sweep` in retrain/*/, and tuned/*.log.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from forcereg.report.curves import read_run
from forcereg.report.table import Table, csv_text, numeric
from forcereg.study.sweep_plan import RESULT, Kept, Result
from forcereg.system import sidefiles
from forcereg.system.files import write_text
from forcereg.version import __version__

COLUMNS = (
    "net", "force_decay", "force_type", "seed", "accuracy", "ranks_at_error", "full_ranks", "ranks", "macs",
    "macs_cut", "accuracy_cut", "accuracy_tuned",
)  # fmt: skip
FEW = 5
"""Layers whose ranks a table has room for."""


@dataclass(frozen=True)
class Arm:
    """A retrained net: what the sweep found, and its accuracy after fine-tuning, None if that hasn't been."""

    found: Result
    tuned: float | None

    @property
    def label(self) -> str:
        """As the files in tuned/ are called."""
        strength, kind = (self.found.fields.get(name, "") for name in ("force_decay", "force_type"))
        return f"{strength}_{kind}" if kind else "no_force"

    def cells(self) -> list[object]:
        """Those of COLUMNS behind the first."""
        one = self.found
        lists = ("/".join(map(str, ranks)) for ranks in (one.ranks_at_error, one.full_ranks, one.ranks))
        fields = (one.fields.get(name, "") for name in ("force_decay", "force_type"))
        return [*fields, one.seed, one.accuracy, *lists, one.macs, one.macs_cut, one.accuracy_cut, self.tuned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--score", default="accuracy", help="the test net's output that is the accuracy")
    asked = parser.parse_args()
    trained = last(Path("baseline.log"), asked.score)
    arms = sorted(found(asked.score), key=lambda arm: (arm.found.fields.get("force_type", ""), order(arm)))
    rows = [[asked.name, *arm.cells()] for arm in arms]
    versions = f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    remarks = [f"scripts/paper, {versions}, {platform.machine()}, {datetime.date.today()}", f"trained: {trained}"]
    write_text(f"{asked.name}.csv", csv_text(COLUMNS, rows, remarks))
    table(asked.name, trained, arms).show()


def found(score: str) -> Iterable[Arm]:
    """The runs that came to their end."""
    for path in sorted(Path("retrain").glob(f"*/*/{RESULT}")):
        kept = sidefiles.known(path, Kept)
        if kept is not None:
            arm = Arm(kept.result, None)
            log = Path("tuned", f"{arm.label}.log")
            yield Arm(kept.result, last(log, score) if log.exists() else None)


def order(arm: Arm) -> float:
    """By the strength of the force."""
    return float(arm.found.fields["force_decay"])


def last(log: Path, score: str) -> float | None:
    """The accuracy at the end of a log."""
    curve = read_run(log).curves.get(f"test {score}")
    return curve.values[-1] if curve else None


def table(name: str, trained: float | None, arms: Sequence[Arm]) -> Table:
    """A row a net."""
    made = Table("force", *numeric("whole", "ranks at 5% error", "ranks cut to", "million MACs", "cut", "fine-tuned"),
                 title=f"{name}: {share(trained)} before retraining")  # fmt: skip
    for arm in arms:
        one = arm.found
        full = [str(rank) for rank in one.full_ranks]
        kept = [rank if rank != "whole" else most for rank, most in zip(one.ranks, full, strict=True)]
        macs = "-" if one.macs is None or one.macs_cut is None else f"{one.macs_cut / 1e6:.3g} of {one.macs / 1e6:.3g}"
        ranks = told(list(map(str, one.ranks_at_error)), full), told(kept, full)
        made.row(arm.label.replace("_", " "), share(one.accuracy), *ranks, macs, share(one.accuracy_cut),
                 share(arm.tuned))  # fmt: skip
    return made


def told(ranks: Sequence[str], full: Sequence[str]) -> str:
    """The ranks of few layers; of many the share of all filters."""
    if len(ranks) <= FEW:
        return "/".join(ranks)
    # of a pair of ranks the outputs'
    return f"{sum(int(rank.split('-')[0]) for rank in ranks) / sum(map(int, full)):.0%}"


def share(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2%}"


if __name__ == "__main__":
    main()
