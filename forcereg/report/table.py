"""Tables: on a terminal, where numbers are never broken, and as CSV, where no cell is taken for a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from forcereg.errors import printable
from forcereg.system.terminal import WIDE, console

NAME = 12
"""Columns to which a name may be folded."""
# the full-width ones, too, which some take for them
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet begins a formula with."""

Cell = str | Sequence[str]
"""Text, or the lines of it."""


@dataclass
class Column:
    """`kind`: "name", folded anywhere where room is short; "text" and "numbers", broken at spaces; "number" and
    "whole", never."""

    heading: str
    kind: str = "name"
    cells: list[list[str]] = field(default_factory=list)

    def natural(self) -> int:
        """The width of the longest line."""
        return max(_width(self.heading), self._longest())

    def _longest(self) -> int:
        return max((_width(line) for cell in self.cells for line in cell), default=0)

    def least(self) -> int:
        """The width below which it can't be read."""
        if self.kind == "whole":
            return self.natural()
        heading = max(map(_width, self.heading.split()), default=1)
        if self.kind == "number":
            return max(heading, self._longest())
        words = (word for cell in self.cells for line in cell for word in line.split())
        longest = max([heading, *map(_width, words)])
        return min(NAME, longest) if self.kind == "name" else longest


def numeric(*headings: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(heading, "number") for heading in headings]


def whole(heading: str) -> Column:
    """A column of what is never broken."""
    return Column(heading, "whole")


class Table:
    """Rows of text for people; a column is the heading of names or a `Column`.

    What is too wide comes in parts below each other, each with the first column, and with the rows that have anything
    else there.
    """

    def __init__(self, *columns: str | Column, title: str = "", boxed: bool = True) -> None:
        self.columns = [Column(one) if isinstance(one, str) else one for one in columns]
        self._title, self._boxed = title, boxed
        self._sections: set[int] = set()

    def row(self, *cells: Cell) -> None:
        """One cell for each column."""
        for column, cell in zip(self.columns, cells, strict=True):
            column.cells.append([printable(line) for line in ([cell] if isinstance(cell, str) else cell)])

    def section(self) -> None:
        """A line between the rows so far and those that come."""
        self._sections.add(len(self.columns[0].cells) - 1)

    def show(self, most: int = WIDE) -> None:
        """Prints it, as wide as standard output shows, or `most`."""
        to = console()
        width = min(to.width, most)
        for part in self._parts(width):
            sizes = shares(part, width - self._frame(len(part)))
            # a terminal that is too narrow for a single number breaks it where rich would drop its end
            to.width = max(width, self._frame(len(part)) + sum(sizes))
            to.print(self._drawn(part, sizes))

    def _parts(self, width: int) -> list[list[Column]]:
        """The columns of each table, none wider than `width` if that can be."""
        first, *rest = self.columns
        parts = [[first]]
        for column in rest:
            if len(parts[-1]) > 1 and self._frame(len(parts[-1]) + 1) + _least([*parts[-1], column]) > width:
                parts.append([first])
            parts[-1].append(column)
        return parts

    def _frame(self, count: int) -> int:
        """The width of all that isn't content."""
        return 3 * count + 1 if self._boxed else 2 * count

    def _drawn(self, columns: Sequence[Column], sizes: Sequence[int]) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(
            title=Text(printable(self._title)) if self._title else None,
            title_justify="left",
            box=box.HEAVY_HEAD if self._boxed else None,
            pad_edge=self._boxed,
        )
        for column, size in zip(columns, sizes, strict=True):
            justify: Any = "right" if column.kind.startswith("number") else "left"
            made.add_column(Text(column.heading), justify=justify, width=size, overflow="fold")
        rows = list(zip(*(column.cells for column in columns), strict=True))
        kept = [at for at, cells in enumerate(rows) if len(columns) == len(self.columns) or any(map(any, cells[1:]))]
        for at, following in zip(kept, [*kept[1:], len(rows)], strict=True):
            ends = not self._sections.isdisjoint(range(at, following))
            # Text: in plain strings rich reads names' brackets as markup
            made.add_row(*(Text("\n".join(cell)) for cell in rows[at]), end_section=ends)
        return made


def shares(columns: Sequence[Column], room: int) -> list[int]:
    """The width of each column: its natural one, or where all have no room at least the least; names come first."""
    found = [column.least() for column in columns]
    for kind in ("name", "text", "numbers", "number"):
        lacks = [(column.kind == kind) * (column.natural() - column.least()) for column in columns]
        left = max(0, min(room - sum(found), sum(lacks)))
        found = [size + lack * left // max(1, sum(lacks)) for size, lack in zip(found, lacks, strict=True)]
    return found


def _least(columns: Iterable[Column]) -> int:
    return sum(column.least() for column in columns)


def _width(text: str) -> int:
    from rich.cells import cell_len

    # Chinese characters and the like are two columns wide
    return cell_len(text)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]], remarks: Iterable[str] = ()) -> str:
    """CSV: None as nothing, floats by 6 digits, names on one line; `remarks` open it as comments."""
    out = io.StringIO()
    out.writelines(f"# {printable(line)}\n" for line in remarks)
    # csv's own line end is \r\n
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_cell(cell) for cell in row] for row in [header, *rows])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        shown = printable(value)
        # behind a quote spreadsheets show it as text
        return f"'{shown}" if shown.startswith(FORMULA) and not _is_number(shown) else shown
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
