"""What tests of Caffe's Python interface start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forcereg.pycaffe import state
from tests.pycaffe.nets import DEPLOY, TRAINED, net_of


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Modes and seeds of one test are its own."""
    before = vars(state.STATE).copy()
    yield
    vars(state.STATE).update(before)


@pytest.fixture
def deploy(tmp_path: Path) -> Any:
    """The net DEPLOY, phase TEST."""
    return net_of(DEPLOY, tmp_path)


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    """The net TRAINED, phase TRAIN."""
    return net_of(TRAINED, tmp_path, 0)
