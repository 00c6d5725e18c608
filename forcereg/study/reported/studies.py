"""What a study found, from its CSV file: the table, the pictures, the solver that its runs share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.report.lines import lines
from forcereg.report.page import Grid, Line, Part, Picture, Text
from forcereg.report.plot import Look
from forcereg.report.rank_shares import NEEDED, picture, read_shares
from forcereg.study import frontier_report
from forcereg.study.reported.sources import picture_beside
from forcereg.study.sweep_plan import RUN, Run
from forcereg.system.sidefiles import known

MOST = 5000
"""Rows that a page shows."""
FORMS: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(
        ("accuracy", "accuracy_whole_tuned", "accuracy_cut", "accuracy_tuned"), lambda text: f"{float(text):.2%}"
    ),
    **dict.fromkeys(("macs", "macs_cut", "params"), lambda text: f"{int(text):,}"),
    **dict.fromkeys(("loss", "milliseconds", "value"), lambda text: f"{float(text):.4g}"),
    **dict.fromkeys(("seconds", "seed", "trial"), str),
}
"""Column of numbers -> how a cell is written."""


@dataclass(frozen=True)
class Study:
    """The lines of a CSV file of a `kind`, "sweep", "tune" or "frontier": what opens it as remarks, header and rows."""

    path: Path
    kind: str
    remarks: list[str]
    header: list[str]
    rows: list[list[str]]


def kind_of(path: Path, header: Sequence[str]) -> str:
    """Which study's a table is. Raises ForceregError for one of something else."""
    if {*frontier_report.COLUMNS} <= {*header}:
        return "frontier"
    if {*NEEDED} <= {*header}:
        return "tune" if "trial" in header else "sweep"
    raise ForceregError(f"{path}: is no results.csv of sweep or tune, and no table of frontier")


def read_study(path: Path) -> Study:
    """The file. Raises ForceregError for one that can't be read, is none of a study's, or has a damaged row."""
    remarks, table = list[str](), list[list[str]]()
    for number, line in enumerate(lines(path), 1):
        if line.startswith("#"):
            remarks.append(line.removeprefix("#").strip())
        elif line.strip():
            table.append(_cells(path, number, line, len(table[0]) if table else None))
        if len(table) > MOST + 1:
            raise ForceregError(f"{path}: has more than {MOST:,} rows, which no page can show")
    header, *rows = table or [[]]
    return Study(path, kind_of(path, header), remarks, header, rows)


def _cells(path: Path, number: int, line: str, count: int | None) -> list[str]:
    try:
        (cells,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        cells = []
    if not cells or count not in (None, len(cells)):
        raise ForceregError(f"{path}:{number}: is no row of a study's table; run the study again")
    return cells


def parts(study: Study, left: Callable[[str], None]) -> Iterator[Part]:
    """What a page shows of it; `left` is told what isn't there, a line each."""
    for remark in study.remarks:
        yield Line(remark, quiet=True)
    names = [study.path.with_suffix(ending).name for ending in (".svg", ".png")]
    if study.kind != "frontier":
        names = [f"{study.kind}.svg"]
    drawn = picture_beside(study.path, names)
    if drawn is None:
        left(f"the picture of {study.path}: there is no {' or '.join(names)} beside it")
    else:
        yield Picture(*drawn, f"accuracies and costs of {study.path}")
    yield grid(study)
    if study.kind != "frontier":
        try:
            yield Picture(picture(read_shares(study.path), "svg", Look()), "svg", "rank needed against test error")
            yield Line("The rank that each layer needs, against the error of the whole net.", quiet=True)
        except ForceregError as error:
            left(f"the picture of ranks: {error}")
        yield from solver(study)


def grid(study: Study) -> Grid:
    """The table, without columns that have nothing."""
    rows = [[written(*one) for one in zip(study.header, row, strict=True)] for row in study.rows]
    numbers = frozenset(at for at, name in enumerate(study.header) if name in FORMS)
    return Grid([name.replace("_", " ") for name in study.header], rows, numbers).known()


def written(column: str, cell: str) -> str:
    """A cell for people; what isn't what its column holds as it is."""
    try:
        return FORMS[column](cell) if cell and column in FORMS else cell
    except ValueError:
        return cell


def solver(study: Study) -> Iterator[Part]:
    """The solver of the first of its runs that says what it was."""
    for path in sorted(study.path.parent.glob(f"*/{RUN}")):
        if (run := known(path, Run)) is not None:
            yield Text(run.solver, f"solver of {path.parent.name}")
            return
