"""Rows that benchmarks keep in CSV files: dataclasses of texts and floats."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from forcereg.system.files import write_text

R = TypeVar("R")


def read(path: Path, kind: type[R]) -> list[R]:
    """The rows of a file, none where there is none. Raises SystemExit, one line, for another file."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if reader.fieldnames != columns(kind):
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [_row(given, kind) for given in reader]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise SystemExit(f"{path}: not a file that this script wrote ({error!r}); name another") from None


def _row(given: Mapping[str, str], kind: Any) -> Any:
    return kind(
        **{one.name: float(given[one.name]) if one.type == "float" else given[one.name] for one in fields(kind)}
    )


def columns(kind: Any) -> list[str]:
    """The names of a row's cells."""
    return [one.name for one in fields(kind)]


def write(path: Path, rows: Sequence[Any], kind: Any) -> None:
    """The file anew, whole or not at all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(kind), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows)
    write_text(path, out.getvalue())
