"""The rooms of forcereg: an import goes down only, never round in a circle; what `--help` needs does not load torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.nursery import Nursery

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "forcereg"

# From the lowest floor up. A module imports from its own room and from floors below, so rooms of one floor don't know
# each other; imports inside functions and under TYPE_CHECKING count.
FLOORS = (
    ("errors", "version", "cost"),
    ("registry", "system"),
    ("schema",),
    ("layers", "data", "snapshot", "lowrank"),
    ("net", "report"),
    ("solver", "exports"),
    ("study", "pycaffe"),
    ("workflows", "nn"),
    ("commands", "__init__", "__main__"),
)
LOOSE = {"__init__", "__main__", "errors", "registry", "version", "cost"}
"""Modules that lie in no room."""
PURE = ("solver/force.py", "solver/pairs.py", "lowrank/views.py", "lowrank/factor.py", "lowrank/metric.py")
"""Mathematics: these import torch, errors, the registry and each other."""
LIGHT = {"errors", "registry", "version", "cost", "system", "schema", "__init__", "commands", "__main__"}
HEAVY = ("forcereg.system.capture", "forcereg.system.device", "forcereg.system.hdf5")  # these are about torch and h5py

PROGRAMS = ("commands", "__main__", "pycaffe.__main__", "study.jobs.worker")
"""What processes begin with."""
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """'forcereg.data.feed' -> 'data'; 'forcereg' itself -> '__init__'."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def module_name(path: Path) -> str:
    """forcereg/data/feed.py -> 'forcereg.data.feed'; forcereg/data/__init__.py -> 'forcereg.data'."""
    pieces = path.relative_to(TOP).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of forcereg) for every import statement in `source`, the text of `path`."""
    module, is_package = module_name(path), path.name == "__init__.py"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "forcereg")
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                keep = len(module.split(".")) - node.level + is_package
                origin = ".".join([*module.split(".")[:keep], *filter(None, [origin])])
            if origin.split(".")[0] == "forcereg":  # submodules, or names of the module itself
                yield from ((node.lineno, _submodule(origin, alias.name)) for alias in node.names)


def _submodule(package: str, name: str) -> str:
    folder = TOP.joinpath(*package.split("."))
    is_module = (folder / name).is_dir() or (folder / f"{name}.py").is_file()
    return f"{package}.{name}" if is_module else package


def upward(source: str, path: Path) -> list[str]:
    """The imports in `source`, the text of `path`, that don't go down."""
    module = module_name(path)
    own = part(module)
    return [
        f"{path.relative_to(TOP)}:{line}: {own} must not import {part(target)}"
        for line, target in imports(source, path)
        if part(target) != own and FLOOR[part(target)] >= FLOOR[own]
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Nodes of which each leads to the next, and the last to the first; empty if there are none."""
    done: set[str] = set()

    def walk(node: str, way: tuple[str, ...]) -> list[str]:
        if node in way:
            return list(way[way.index(node) :])
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if found := walk(following, (*way, node)):
                return found
        done.add(node)
        return []

    return next((found for node in graph if (found := walk(node, ()))), [])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    found = {
        module_name(path): {name for _, name in imports(path.read_text(encoding="utf-8"), path)} for path in MODULES
    }
    return {module: targets - {module} for module, targets in found.items()}


def test_every_room_has_a_floor() -> None:
    assert {part(module_name(path)) for path in MODULES} <= FLOOR.keys()


def test_what_lies_loose() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    assert upward(path.read_text(encoding="utf-8"), path) == []


def test_no_circles(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


def test_nine_floors(graph: dict[str, set[str]]) -> None:
    """Each room stands on those that it imports, whatever `FLOORS` says."""
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        below = set(map(part, targets))
        rooms.setdefault(part(module), set()).update(below - {part(module)})
    floors: dict[str, int] = {}
    while len(floors) < len(rooms):
        ready = {room for room in rooms.keys() - floors.keys() if rooms[room] <= floors.keys()}
        assert ready, f"in a circle: {sorted(rooms.keys() - floors.keys())}"
        floors.update({room: 1 + max((floors[below] for below in rooms[room]), default=0) for room in ready})
    assert max(floors.values()) <= 9, floors


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import torch\nfrom forcereg.errors import ForceregError", 0, id="down"),
        pytest.param("from forcereg.layers.base import Built", 0, id="own-room"),
        pytest.param("from .base import Built", 0, id="relative-own"),
        pytest.param("from forcereg.solver import Solver", 1, id="up"),
        pytest.param("from forcereg.data.feed import Feed", 1, id="same-floor"),
        pytest.param("from forcereg import net", 1, id="up-submodule"),
        pytest.param("from forcereg import load_net", 1, id="name-of-the-package"),
        pytest.param("from ..net import Net", 1, id="relative-up"),
        pytest.param("def f():\n    import forcereg.commands.train", 1, id="inside-a-function"),
        pytest.param("if TYPE_CHECKING:\n    from forcereg.net.module import Net", 1, id="for-types-only"),
    ],
)
def test_the_check_itself(source: str, found: int) -> None:
    assert len(upward(source, PACKAGE / "layers" / "pooling.py")) == found


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        pytest.param({"a": {"b", "c"}, "b": {"c"}, "c": {"torch"}}, [], id="none"),
        pytest.param({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}}, ["b", "c"], id="further-on"),
    ],
)
def test_circles_are_found(graph: dict[str, set[str]], found: list[str]) -> None:
    assert circle(graph) == found


@pytest.mark.parametrize(
    ("wanted", "users"),
    [
        pytest.param("click", ("commands", "__main__"), id="options"),
        pytest.param("forcereg.system.terminal", (*PROGRAMS, "report", "solver.log"), id="printing"),
    ],
)
def test_who_talks_to_people(wanted: str, users: tuple[str, ...]) -> None:
    """All others return results and tell observers."""
    for path in MODULES:
        where = module_name(path).removeprefix("forcereg.")
        if not f"{where}.".startswith(tuple(f"{user}." for user in users)):
            assert wanted not in imported(path.read_text(encoding="utf-8")), f"{where} imports {wanted}"


def imported(source: str) -> set[str]:
    """All modules that import statements name, with what encloses them and what may be one inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found | {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("name", PURE)
def test_mathematics_stays_pure(name: str) -> None:
    path = PACKAGE / name
    pure = {"forcereg." + other.removesuffix(".py").replace("/", ".") for other in PURE}
    # and what says that an argument is wrong, which imports nothing of the package but errors
    allowed = pure | {"forcereg.errors", "forcereg.registry", "forcereg.system.arguments"}
    assert {target for _, target in imports(path.read_text(), path)} <= allowed


@pytest.fixture(scope="module")
def bare() -> Iterator[Nursery]:
    """Processes that have loaded nothing yet."""
    with Nursery() as nursery:
        yield nursery


@pytest.mark.parametrize(
    "module", [name for name in map(module_name, MODULES) if part(name) in LIGHT and name not in HEAVY]
)
def test_torch_is_not_loaded(module: str, bare: Nursery) -> None:
    done = bare.run("-c", f"import sys, {module}; sys.exit('torch' in sys.modules)", cwd=TOP)
    assert done.returncode == 0, done.stderr or f"{module} loads torch"
