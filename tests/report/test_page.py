"""Pages: no text becomes markup, whatever it is, and a browser shows them as they are meant."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import UsageError
from forcereg.report.markup import LONGEST, short
from forcereg.report.page import Bars, Command, Facts, Gallery, Grid, Line, Picture, Section, Text, check_name, page
from forcereg.report.table import Column, Table
from tests.report.browser import WIDTHS, Browser

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
HOSTILE = (
    "<script>document.title='run'</script>", "\"'><img src=x onerror=alert(1)>", "</style></title><h1>",
    "&lt;&#60;&amp;", "]]>--><!--", "\u202egnp.exe", "\x00\x1b[31m\x7f", "\ud800",
    "javascript:alert(1)", "שכבה ראשונה", "x" * 5000, "",
)  # fmt: skip
"""Names that layers, runs and files may have."""


def sections(texts: Sequence[str]) -> list[Section]:
    """Each kind of part, with the texts wherever one goes."""
    one, two, three = texts
    parts = [
        Line(one), Line(two, quiet=True), Facts([(one, two), (two, three)]), Text(one), Text(two, title=three or "t"),
        Command(three),
        Picture(PIXEL, "png", one), Gallery([Picture(PIXEL, "png", two)]), Picture(PIXEL, "png", three, large=True),
        Grid([one, two], [[two, three], [one, Bars([0.2, 0.5])]], frozenset([1]), title=one or "t"),
    ]  # fmt: skip
    return [Section(one, parts), Section(two, [], inner=True), Section(three, [])]


class Read(HTMLParser):
    """The elements of a document with their attributes' names, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


PLAIN = Read(page("title", sections(["one", "two", "three"]))).elements


@settings(max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text()), min_size=4, max_size=4))
def test_no_text_becomes_markup(texts: list[str]) -> None:
    """Whatever the texts are, the elements are the same, and the texts are there to be read."""
    title, *others = texts
    made = page(title, sections(others))
    read = Read(made)
    assert read.elements == PLAIN
    # the encoder would refuse half of a surrogate pair
    assert made.encode()
    told = [text for text in read.texts if text.strip()]
    assert all(short(text) in told for text in others if short(text).strip())
    # what can't be seen is said: nothing turns the line around, nothing is lost
    assert all(one.isprintable() for text in told if "color-scheme" not in text for one in text if one != "\n")


@given(st.text(min_size=LONGEST + 1))
def test_long_names_are_cut_in_the_middle(text: str) -> None:
    found = short(text)
    assert len(found) <= LONGEST and "…" in found and found[:20] in short(text[:60])


def test_the_policy_allows_this_style_and_no_script() -> None:
    made = page("title", sections(["one", "two", "three"]))
    (style,) = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    (policy,) = re.findall(r'content="(default-src[^"]*)"', made)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert "script-src" not in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(src|href)=\"(?!data:|#)", made)


def test_links_lead_to_the_outer_sections() -> None:
    made = page("title", sections(["one", "two", "three"]))
    links = re.findall(r'<a href="#(s\d+)">(\w+)</a>', made)
    assert links == [("s0", "one"), ("s2", "three")]
    assert all(f' id="{place}"' in made for place, _ in links)


def test_a_terminal_s_table() -> None:
    table = Table("layer", Column("rank", "number"), Column("tried", "text"))
    table.row("conv1", "12", ["4: 1 ms", "8: 2 ms"])
    grid = Grid.of(table)
    assert (grid.headings, grid.rows, grid.numbers) == (
        ["layer", "rank", "tried"], [["conv1", "12", "4: 1 ms 8: 2 ms"]], frozenset([1]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "shades"),
    [([0.1], [0]), ([0.2, 0.4, 0.1, 0.3], [0, 1, 2, 3]), ([one / 8 for one in range(1, 9)], [0, 0, 1, 1, 2, 2, 3, 3])],
)
def test_bars_get_darker_as_they_get_shorter(shares: list[float], shades: list[int]) -> None:
    drawn = list(Bars(shares).element())[1:]
    widths = sorted((round(100 * one, 1) for one in shares), reverse=True)
    assert [float(one.get("width", "")) for one in drawn] == widths
    assert [int(one.get("class", "")[-1]) for one in drawn] == shades


def test_names_of_pages() -> None:
    check_name("a/report.HTML")
    with pytest.raises(UsageError, match=r"the report is 'report\.pdf'; expected a name that ends in \.html"):
        check_name("report.pdf")


# -- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


def test_hostile_names_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """No script, no complaint, no page wider than its window, and every name to be read."""
    long = "w" * 3000
    rows = [[name, *["123,456.789"] * 14] for name in (*HOSTILE, long)]
    found = [
        *sections([HOSTILE[0], long, HOSTILE[9]]),
        Section("wide", [Grid(["layer", *map(str, range(14))], rows), Text(long), Line(long)]),
    ]
    made = tmp_path / "page.html"
    made.write_text(page(HOSTILE[1], found), encoding="utf-8")
    assert browser.console(made) == []
    for view, width in zip(browser.views(made), WIDTHS, strict=True):
        assert (view.width, view.overflow, view.scripts) == (width, 0, 0)
        assert view.images and min(view.images) > 0 and view.drawings and min(view.drawings) > 0
        for name in HOSTILE[:-1]:
            assert short(name) in view.text


def test_what_would_be_wrong_is_seen(browser: Browser, tmp_path: Path) -> None:
    """The test above can fail: a script, a picture that is none, a wide box."""
    whole = page("title", sections(["one", "two", "three"]))
    broken = whole.replace("<nav>", f"<table><tr><td>{'w' * 900}</td></tr></table><script>1</script><nav>")
    made = tmp_path / "page.html"
    made.write_text(broken.replace("iVBOR", "AAAAA"), encoding="utf-8")
    assert any("Content Security Policy" in line for line in browser.console(made))
    for view in browser.views(made):
        assert view.scripts == 1 and 0 in view.images and view.overflow > 0


def test_on_paper(browser: Browser, tmp_path: Path) -> None:
    made = tmp_path / "page.html"
    made.write_text(page("title", [Section("long", [Line("x " * 30_000)])]), encoding="utf-8")
    pdf = browser.printed(made)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5
