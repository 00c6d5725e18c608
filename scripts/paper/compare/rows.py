"""What the scripts here share: accuracies heard from a training, and rows that say where they come from."""

from __future__ import annotations

import csv
import datetime
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import forcereg


def accuracies_into(found: list[float]) -> Callable[[forcereg.Event], None]:
    """An observer that adds each test's accuracy."""

    def heard(event: forcereg.Event) -> None:
        if event.kind == "test":
            found.append(next(one.value for one in event.outputs if one.name == "accuracy"))

    return heard


def resumable(folder: Path, prefix: str) -> bool:
    """Whether a training of that prefix was ended half way."""
    return any(folder.glob(f"{prefix}_iter_*.solverstate.h5"))


def made_by(version: str) -> dict[str, str]:
    """The columns of every row that say by what, when, where and how it was made."""
    return {
        "version": version, "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        "machine": machine(), "command": shlex.join(sys.argv[1:]),
    }  # fmt: skip


def add_row(out: Path, columns: Sequence[str], row: Mapping[str, object]) -> dict[str, str]:
    """Adds a row to a CSV file, which may not be there yet; the row as it was written."""
    told = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in row.items()}
    new = not out.exists()
    with out.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(told)
    return told


def machine() -> str:
    """The processor's name, and how many threads were used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread"
