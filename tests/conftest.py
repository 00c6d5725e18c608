"""Fixtures that many tests share: real data sets where present, and the command line as a process."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forcereg import registry
from forcereg.system import plugins
from tests.nursery import Nursery

with contextlib.suppress(ImportError):  # a machine with a GPU may have little beside torch
    from hypothesis import settings

    # the same examples on every run of a commit: a rare one found by chance would fail somebody else's change
    settings.register_profile("forcereg", derandomize=True, deadline=None)
    settings.load_profile("forcereg")

# before anything loads torch: a thread that waits for another must not keep that one's core busy, and where pytest
# runs a process per core none is left for threads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TOP = Path(__file__).resolve().parents[1]
pytest_plugins = ("tests.long_forms",)


def pytest_collection_finish() -> None:
    """What is there before the first test stays, so that no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


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
def nursery() -> Iterator[Nursery]:
    """`nursery.run("-c", code, ...)`: Python as a process of its own that needn't load torch."""
    with Nursery("torch") as nursery:
        yield nursery


@pytest.fixture(scope="session")
def run_cli(nursery: Nursery) -> RunCli:
    """`run_cli("decompose", "--help", cwd=..., env={...})`: forcereg as a process of its own."""
    return functools.partial(nursery.run, "-m", "forcereg")


@pytest.fixture(autouse=True)
def _the_process_is_left_as_found() -> Iterator[None]:
    """What other tests of the same process, in whatever order they run, would be disturbed by."""

    def state() -> tuple[object, ...]:
        torch = sys.modules.get("torch")
        if torch is None:
            return (os.getcwd(),)
        flags = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()
        return os.getcwd(), torch.get_num_threads(), *flags

    before = state()
    yield
    assert state()[: len(before)] == before


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """`user_module("mylayers", source)` writes mylayers.py into the working directory, which is a fresh folder.

    What such modules leave behind is undone: the path, imported modules, registered layer types.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins._late, "folders", [])
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
