"""Where the nets, solvers and rank configs that forcereg ships lie: in the installed package, or in the checkout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shipped:
    """A shipped file: its path below `configs_dir()`, "net", "solver" or "ranks", and what it is for."""

    path: Path
    kind: str
    description: str


def configs_dir() -> Path:
    """The folder of the shipped `examples/` and `models/`; nets there are named relative to it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    # in a checkout they lie beside the package, where people look for them
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_configs() -> Iterator[Shipped]:
    """All shipped files by path. Each says what it is for: in a comment on its first line, or under "//"."""
    top = configs_dir()
    for path in sorted([*top.rglob("*.prototxt"), *top.rglob("ranks_*.json")]):
        if not path.stem.endswith(("_lowrank", "_deploy")):  # what decompose and deploy wrote beside them
            yield Shipped(path.relative_to(top), _kind(path), _description(path))


def _kind(path: Path) -> str:
    """Solver files have `solver` in their name."""
    return "ranks" if path.suffix == ".json" else "solver" if "solver" in path.stem else "net"


def _description(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return str(json.loads(text).get("//", ""))
    return text.partition("\n")[0].removeprefix("# ")
