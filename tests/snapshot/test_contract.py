"""forcereg/snapshot/README.md tells all that is written, and what it tells is so."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from forcereg.lowrank.accuracy import Point
from forcereg.report import series
from forcereg.snapshot import binary, container
from forcereg.solver import saved
from forcereg.study import frontier_report, sweep_report, tune_report
from forcereg.study.filters.angles import Angles
from forcereg.study.filters.basis import Basis
from forcereg.study.filters.images import Images
from forcereg.study.filters.plane import Plane
from forcereg.study.prune import report as prune_report
from forcereg.study.sweep_plan import Asked, Kept, Run
from forcereg.system.events import KINDS
from tests.snapshot.frozen.make import HERE, schema

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "forcereg/snapshot/README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^#+ (.+)\n((?:(?!^#+ ).*\n?)*)", PAGE, re.M))
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (TOP / "forcereg").rglob("*.py")}


def named(section: str) -> set[str]:
    """What stands in backticks in a section, and the words of that."""
    spans = re.findall(r"`([^`\n]+)`", SECTIONS[section])
    return {*spans, *(word for span in spans for word in re.findall(r"[\w.?]+", span))}


def events() -> dict[str, list[set[str]]]:
    """Kind -> the fields of each row of the page's table."""
    found: dict[str, list[set[str]]] = {}
    for kind, told in re.findall(r"^\| `(\w+)` \|(.*)\| [^|]*\|$", SECTIONS["Events"], re.M):
        found.setdefault(kind, []).append({*re.findall(r"`(\w+)`", told)})
    return found


def strings() -> Iterator[str]:
    for tree in SOURCES.values():
        yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str)


def emitted() -> Iterator[tuple[str, set[str]]]:
    """Kind and fields, as far as the source tells, of each event that is emitted."""
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("emit", "_emit") and node.args:
                kind = node.args[0]
                if isinstance(kind, ast.Constant):
                    yield str(kind.value), {word.arg for word in node.keywords if word.arg}


def test_the_page_has_every_event() -> None:
    told = events()
    found = list(emitted())
    assert {kind for kind, _ in found} >= {"train", "test", "snapshot", "error"}
    for kind, names in found:
        if kind == "progress":
            assert names <= named("Events")
        else:
            assert any(names <= row for row in told.get(kind, [])), f"{kind}: {names}"


def test_hooks_know_every_event() -> None:
    assert {*events(), "progress"} == KINDS


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


@pytest.mark.parametrize("log", sorted(HERE.glob("*/*.jsonl")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_page_has_all_that_logs_have(log: Path) -> None:
    told = events()
    for event in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        kind, _ = event.pop("event"), event.pop("time")
        outputs = event.pop("outputs", [])
        assert {*keys(outputs)} <= named("Outputs")
        seen = {*keys(event)} | ({"outputs"} if outputs else set())
        assert any(seen <= row for row in told[kind]), f"{kind}: {seen}"


def test_the_page_has_every_attribute() -> None:
    told = named("Provenance")
    written = {text for text in strings() if re.fullmatch(r"forcereg_[a-z]+(_[a-z]+)?", text)}
    assert written >= {"forcereg_net", "forcereg_decomposed"}
    assert written <= told
    for path in HERE.glob("*/chain.caffemodel.h5"):
        from forcereg.snapshot import read_model

        made = json.loads(read_model(path).attrs["forcereg_decomposed"])
        assert {*keys(made)} <= told


def test_the_page_has_every_entry_of_a_states_extra() -> None:
    told = {one.removesuffix("?") for one in named("Extra")}
    form = [name.removeprefix("?") for name in keys(saved._EXTRA)]
    assert {name for name in form if name != "*"} <= told
    optional = {name[1:] for name in saved._EXTRA if name.startswith("?")}
    assert optional == {*re.findall(r"^\| `(\w+)`\?", SECTIONS["Extra"], re.M)}


def test_the_page_has_the_entries_of_every_kind_of_data() -> None:
    told = named("Extra")
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if path.parent.name == "data" and isinstance(node, ast.FunctionDef) and node.name == "state_dict":
                inner = [one for one in ast.walk(node) if isinstance(one, ast.Dict)]
                assert {key.value for one in inner for key in one.keys if isinstance(key, ast.Constant)} <= told, path


def test_the_page_has_what_histories_hold() -> None:
    from forcereg.registry import solver_type
    from forcereg.solver import update

    assert update
    for name in solver_type:
        assert f"`{', '.join(solver_type.get(name).holds)}`" in SECTIONS["Extra"], name


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        pytest.param("sweep", ["setting", "seed", *sweep_report.COLUMNS], id="sweep"),
        pytest.param("tune", [*tune_report.COLUMNS, "seed", *sweep_report.COLUMNS], id="tune"),
        pytest.param("frontier", frontier_report.COLUMNS, id="frontier"),
        pytest.param("sensitivity", [field.name for field in fields(Point)], id="sensitivity"),
        pytest.param("prune", prune_report.COLUMNS, id="prune"),
        pytest.param("confusion", ["class", "name", "items", "accuracy", "not a number"], id="confusion"),
        pytest.param("filters", Images.columns, id="filters"),
        pytest.param("filters --basis", Basis.columns, id="filters-basis"),
        pytest.param("filters --lda", Plane.columns, id="filters-lda"),
        pytest.param("filters --angles", Angles.columns, id="filters-angles"),
        pytest.param("plot", series.COLUMNS, id="plot"),
    ],
)
def test_the_page_has_every_column(command: str, columns: Iterable[str]) -> None:
    (row,) = (line for line in SECTIONS["CSV"].splitlines() if line.startswith(f"| `{command}`"))
    assert re.findall(r"`([^`]+)`", row.split(" | ")[1]) == [*columns]


def test_the_page_has_what_side_files_hold() -> None:
    told = named("Side files")
    assert {field.name for form in (Run, Asked, Kept) for field in fields(form)} <= told


def test_the_page_has_the_numbers_of_all_that_is_added_to_messages() -> None:
    told = SECTIONS["Binary"]
    for number in (binary._OPENING, binary._ATTRIBUTE, binary._EXTRA, binary._CHECKSUM):
        assert f"| {number} |" in told
    for kind in binary._KINDS:
        assert f"`{kind.decode()}`" in told
    assert f"end in {container.FOOTER} bytes: `{container._MARK.decode()}`" in SECTIONS["Checksum"]


def added() -> Iterator[tuple[str, str, str]]:
    """Message, field and number of what the page says isn't BVLC's."""
    for message, names, numbers in re.findall(
        r"^\| `(\w+)` \| (`.*?) \| ([\d, ]+) \|", SECTIONS["Fields beyond Caffe's"], re.M
    ):
        known = re.findall(r"`([a-z_]+)`", names)
        yield from ((message, *pair) for pair in zip(known, numbers.split(", "), strict=True))


def test_the_page_has_the_fields_beyond_caffes() -> None:
    now = {(message, *word.split(":")[0].split("=")) for message, *words in map(str.split, schema()) for word in words}
    told = {*added()}
    assert told <= now
    assert {row for row in now if int(row[2]) >= 1000 and row[0][0] != "V"} <= told  # V0 and V1 are old ones of BVLC's
    assert {
        row for row in now if row[1].startswith("force_") and row[0] in ("SolverParameter", "ParamSpec")
    } <= told | {("NetParameter", "force_backward", "5")}
