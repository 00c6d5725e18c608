"""Print the oldest versions that pyproject.toml declares, of the dependencies and all extras, for pip to read.

python scripts/oldest_versions.py
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
NEWER = ("onnx", "onnxruntime", "openvino", "mlflow-skinny", "wandb")
"""Not of the oldest kind: what they need themselves is newer than what everything else still takes."""
RANGE = re.compile(r"(?P<name>[\w.-]+)>=(?P<oldest>\d+(?:\.\d+)*)")


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest(project).items())


def oldest(project: dict[str, Any]) -> dict[str, str]:
    """{package: the oldest version that all its ranges allow} of [project]'s dependencies and extras, but for NEWER.

    ValueError for a requirement other than `name>=version`.
    """
    extras = project.get("optional-dependencies", {}).values()
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        if requirement.startswith(f"{project['name']}["):  # an extra made of others, which are read anyway
            continue
        match = RANGE.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} is not name>=version")
        if match["name"] in NEWER:
            continue
        found[match["name"]] = max(found.get(match["name"], "0"), match["oldest"], key=parts)
    return found


def parts(version: str) -> list[int]:
    """A version in the order of versions: 1.10 is behind 1.9."""
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    main()
