"""scripts/test_versions.sh installs what pyproject.toml declares at its oldest; here without installing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from oldest_versions import oldest

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(line.split("==") for line in (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:])


def project(*dependencies: str, **extras: list[str]) -> dict[str, Any]:
    return {"name": "forcereg", "dependencies": list(dependencies), "optional-dependencies": extras}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        pytest.param(project("torch>=2.7", "h5py>=3.10.1"), {"torch": "2.7", "h5py": "3.10.1"}, id="dependencies"),
        pytest.param(project("a>=1", x=["b-c>=2"], y=["d_e>=3"]), {"a": "1", "b-c": "2", "d_e": "3"}, id="extras"),
        pytest.param(project(x=["a>=1.9"], y=["a>=1.10"], z=["a>=1.2"]), {"a": "1.10"}, id="newest-of-several"),
        pytest.param(project(x=["a>=1"], dev=["forcereg[x]", "b>=2"]), {"a": "1", "b": "2"}, id="extra-of-extras"),
        pytest.param({"name": "forcereg", "dependencies": ["a>=1"]}, {"a": "1"}, id="no-extras"),
    ],
)
def test_oldest_of_ranges(declared: dict[str, Any], expected: dict[str, str]) -> None:
    assert oldest(declared) == expected


@pytest.mark.parametrize("requirement", ["a", "a==1", "a>1", "a>=1,<2", "a>=1; python_version < '3.12'", "a>=1rc1"])
def test_a_requirement_that_is_no_plain_range_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match=r"is not name>=version"):
        oldest(project(requirement))


def test_all_that_is_declared_has_an_oldest_version_and_a_pin() -> None:
    found = oldest(PROJECT)
    assert {"torch", "numpy", "scikit-learn", "plyvel", "tensorboard", "matplotlib", "tensorly"} < found.keys()
    assert found.keys() <= PINS.keys()


def test_script_prints_requirements() -> None:
    call = [sys.executable, TOP / "scripts" / "oldest_versions.py"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert dict(line.split("==") for line in done.stdout.splitlines()) == oldest(PROJECT)
