"""What a pruning came to: a row for each layer, its zeros beside the time that they save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from forcereg.report.table import Column, Table, csv_text, numeric


@dataclass(frozen=True)
class Row:
    """A layer: its `weights`, the `share` of them that isn't 0, and milliseconds dense and in its best sparse form.

    `form`: which that is, "" where none runs it. `decision`: skipped, stopped or restored where pruning was guided,
    with the share `most` below which it is faster than dense, and `least` below which it gets no faster.
    """

    layer: str
    weights: int
    share: float
    dense_ms: float | None = None
    form: str = ""
    sparse_ms: float | None = None
    decision: str = ""
    most: float | None = None
    least: float | None = None


COLUMNS = [one.name for one in fields(Row)]


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each layer."""
    return csv_text(COLUMNS, (list(asdict(row).values()) for row in rows))


def table(rows: Sequence[Row]) -> Table:
    """The same for people; the last row is the sum of all."""
    guided = any(row.decision or row.most is not None for row in rows)
    columns = numeric("weights", "left", "dense ms", "sparse ms", "speed-up")
    judged: list[str | Column] = [*numeric("pays below"), "decision"] if guided else []
    made = Table("layer", *columns, "form", *judged)
    for row in rows:
        most = "" if row.most is None else f"{row.most:.1%}"
        made.row(row.layer, *_cells(row), row.form, *([most, row.decision] if guided else []))
    made.section()
    made.row("all", *_cells(_sum(rows)), "", *(["", ""] if guided else []))
    return made


def _cells(row: Row) -> list[str]:
    times = ["" if one is None else f"{one:.3g}" for one in (row.dense_ms, row.sparse_ms)]
    faster = f"{row.dense_ms / row.sparse_ms:.2f}x" if row.dense_ms and row.sparse_ms else ""
    return [f"{row.weights:,}", f"{row.share:.2%}", *times, faster]


def _sum(rows: Sequence[Row]) -> Row:
    """All layers, each in the faster way."""
    weights = sum(row.weights for row in rows)
    share = sum(row.share * row.weights for row in rows) / weights
    dense = [row.dense_ms for row in rows if row.dense_ms is not None]
    best = [min(row.dense_ms, row.sparse_ms or row.dense_ms) for row in rows if row.dense_ms is not None]
    return Row("all", weights, share, sum(dense) if dense else None, "", sum(best) if dense else None)
