"""Where the prototxt files that forcereg ships lie: in the installed package, or in the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shipped:
    """A shipped prototxt file: its path below `configs_dir()`, "net" or "solver", and what it is for."""

    path: Path
    kind: str
    description: str


def configs_dir() -> Path:
    """The folder of the shipped `examples/` and `models/`; nets there are named relative to it."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_configs() -> Iterator[Shipped]:
    """All shipped files by path. Each says what it is for in a comment on its first line."""
    top = configs_dir()
    for path in sorted(top.rglob("*.prototxt")):
        if not path.stem.endswith("_lowrank"):  # what `forcereg decompose` wrote beside them
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            yield Shipped(path.relative_to(top), _kind(path), first.removeprefix("# "))


def _kind(path: Path) -> str:
    """Solver files have `solver` in their name."""
    return "solver" if "solver" in path.stem else "net"
