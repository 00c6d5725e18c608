"""Fixtures that many tests share: real data sets where present, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from forcereg import registry

# the same examples on every run of a commit: a rare one found by chance would fail somebody else's change
settings.register_profile("forcereg", derandomize=True, deadline=None)
settings.load_profile("forcereg")

TOP = Path(__file__).resolve().parents[1]
RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def _data(relative: str) -> Path:
    """`relative` under $FORCEREG_DATA, else under ../shared/data beside the checkout, else a skip."""
    named = os.environ.get("FORCEREG_DATA")
    folder = Path(named) if named else TOP.parent / "shared" / "data"
    path = folder / relative
    if not path.exists():
        pytest.skip(f"no {relative} under {folder}: set FORCEREG_DATA to a folder that holds it")
    return path


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of MNIST's four idx files."""
    return _data("mnist")


@pytest.fixture(scope="session")
def cifar_tar() -> Path:
    """CIFAR-10 as a tar of class folders of images."""
    return _data("cifar10/cifar10_jpeg.tar.xz")


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """`run_cli("decompose", "--help", cwd=..., env={...})`: forcereg as a process of its own.

    Output is captured; `env` adds to the environment; the exit code is the caller's to check.
    """

    def run(
        *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, "-m", "forcereg", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """`user_module("mylayers", source)` writes mylayers.py into the working directory, which is a fresh folder.

    What such modules leave behind is undone: the path, imported modules, registered layer types.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for table in ("_known", "_about"):
        monkeypatch.setattr(registry.layer, table, dict(getattr(registry.layer, table)))
    before = set(sys.modules)

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
