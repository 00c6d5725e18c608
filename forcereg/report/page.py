"""A page for somebody who wasn't there: one HTML file without scripts, that needs nothing else and no network."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from xml.etree.ElementTree import Element

from forcereg.errors import UsageError
from forcereg.report.markup import element, html, short
from forcereg.report.style import STYLE
from forcereg.report.table import Table
from forcereg.system.paths import StrPath

ENDINGS = (".html", ".htm")
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}
SHADES = 4
"""Of bars over each other, from light to dark."""
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-{}'"
"""What a browser lets the page do: show its own pictures in its own style."""


class Part(Protocol):
    """A piece of a section."""

    def element(self) -> Element:
        """As HTML."""


@dataclass(frozen=True)
class Line:
    """A sentence; `quiet`: one about how figures came about."""

    text: str
    quiet: bool = False

    def element(self) -> Element:
        """A paragraph."""
        return element("p", self.text, class_="quiet") if self.quiet else element("p", self.text)


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]

    def element(self) -> Element:
        """A list of terms."""
        pairs = ((element("dt", short(name)), element("dd", short(what))) for name, what in self.rows)
        return element("dl", *(one for pair in pairs for one in pair))


@dataclass(frozen=True)
class Text:
    """Lines as they are in a file or on a command line; `title`: folded behind it, unless it is empty."""

    text: str
    title: str = ""

    def element(self) -> Element:
        """Preformatted, in a box of its own that scrolls."""
        block = element("pre", self.text)
        return element("details", element("summary", self.title), block) if self.title else block


@dataclass(frozen=True)
class Command:
    """What is typed into a terminal."""

    text: str

    def element(self) -> Element:
        """Whole, on as many lines as it takes."""
        return element("pre", self.text, class_="command")


@dataclass(frozen=True)
class Picture:
    """A picture of `MEDIA`'s kinds; `says`: what it shows; `large`: it keeps its size, in a box that scrolls."""

    data: bytes
    kind: str
    says: str
    large: bool = False

    def element(self) -> Element:
        """An image whose bytes are in the page; what a file of pictures could run doesn't run in an image."""
        source = f"data:{MEDIA[self.kind]};base64,{base64.b64encode(self.data).decode()}"
        image = element("img", src=source, alt=short(self.says))
        return element("figure", image, class_="large" if self.large else "fitted")


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many as there is room for."""

    pictures: Sequence[Picture]

    def element(self) -> Element:
        """In boxes of one width."""
        return element("div", *(one.element() for one in self.pictures), class_="gallery")


@dataclass(frozen=True)
class Bars:
    """Shares of 1, over each other, as a picture in a cell."""

    shares: Sequence[float]

    def element(self) -> Element:
        """The largest first, the smaller ones darker."""
        places = sorted(self.shares, reverse=True)
        shades = len(places) if len(places) > SHADES else SHADES
        drawn = [
            element("rect", class_=f"bar{at * SHADES // shades}", width=f"{100 * one:.1f}", height="10")
            for at, one in enumerate(places)
        ]
        whole = element("rect", class_="whole", width="100", height="10")
        says = ", ".join(f"{one:.0%}" for one in places)
        box = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "role": "img", "aria-label": says}
        return element("svg", whole, *drawn, **box)


Cell = str | Bars


@dataclass(frozen=True)
class Grid:
    """A table; columns whose place is in `numbers` are set to the right. `title`: folded behind it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = field(default_factory=frozenset)
    title: str = ""

    @classmethod
    def of(cls, table: Table, title: str = "") -> Grid:
        """A table for terminals."""
        numbers = frozenset(at for at, one in enumerate(table.columns) if one.kind.startswith("number"))
        cells = zip(*(one.cells for one in table.columns), strict=True)
        rows = [[" ".join(lines) for lines in row] for row in cells]
        return cls([one.heading for one in table.columns], rows, numbers, title)

    def known(self) -> Grid:
        """Without the columns that have nothing."""
        kept = [at for at in range(len(self.headings)) if any(row[at] for row in self.rows)]
        numbers = frozenset(place for place, at in enumerate(kept) if at in self.numbers)
        rows = [[row[at] for at in kept] for row in self.rows]
        return Grid([self.headings[at] for at in kept], rows, numbers, self.title)

    def element(self) -> Element:
        """In a box of its own that scrolls where the page is narrower."""
        head = element(
            "tr", *(element("th", heading, class_=self._kind(at)) for at, heading in enumerate(self.headings))
        )
        rows = (element("tr", *(self._cell(at, cell) for at, cell in enumerate(row))) for row in self.rows)
        made = element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")
        return element("details", element("summary", self.title), made) if self.title else made

    def _kind(self, at: int) -> str:
        return "number" if at in self.numbers else "text"

    def _cell(self, at: int, cell: Cell) -> Element:
        return element("td", short(cell) if isinstance(cell, str) else cell.element(), class_=self._kind(at))


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `inner`: it belongs to the section before."""

    title: str
    parts: Sequence[Part]
    inner: bool = False


def check_name(path: StrPath) -> None:
    """Raises UsageError for a file that isn't .html."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise UsageError(f"the report is '{os.fspath(path)}'; expected a name that ends in .html")


def page(title: str, sections: Sequence[Section]) -> str:
    """The document; a list of links to its sections opens it."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    named = element("title", short(title))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": POLICY.format(digest)}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        named,
        element("style", STYLE),
    )
    body = element("body", element("h1", short(title)), _contents(sections), *_body(sections))
    return html(element("html", head, body, lang="en"))


def _contents(sections: Sequence[Section]) -> Element:
    links = [
        element("li", element("a", short(one.title), href=f"#s{at}"))
        for at, one in enumerate(sections)
        if not one.inner
    ]
    return element("nav", element("ul", *links))


def _body(sections: Sequence[Section]) -> Iterator[Element]:
    for at, one in enumerate(sections):
        heading = element("h3" if one.inner else "h2", short(one.title), id=f"s{at}")
        yield element("section", heading, *(part.element() for part in one.parts))
