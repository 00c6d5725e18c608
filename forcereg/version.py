"""The version, from the installed package's metadata or, in a bare checkout, from pyproject.toml."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def _version() -> str:
    try:
        return metadata.version("forcereg")
    except metadata.PackageNotFoundError:
        # an installed package never needs it
        import tomllib

        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return tomllib.loads(project.read_text())["project"]["version"] if project.exists() else "unknown"


__version__ = _version()
