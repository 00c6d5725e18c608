"""The recorded Caffe cases as pytest parameters: bundled in tests/golden, and under $FORCEREG_GOLDEN.

@pytest.mark.parametrize("case", golden_cases("layers"))
def test_forward(case: Case) -> None: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.golden_files import BUNDLED, Case, bundled, singles

__all__ = ["BUNDLED", "Case", "golden_cases"]


def golden_cases(group: str, select: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """All cases of a group (layers, force, solver, ...) that `select` accepts, as `pytest.param`s.

    Bundled cases have their id as parameter id, single files under $FORCEREG_GOLDEN have `single-<id>`.
    """
    params = [pytest.param(case, id=case.id) for case in bundled(group) if select(case)]
    params += [pytest.param(case, id=f"single-{case.id}") for case in _singles(group) if select(case)]
    assert params, f"no golden case of {group} selected"
    return params


def _singles(group: str) -> list[Case]:
    named = os.environ.get("FORCEREG_GOLDEN")
    if not named:
        return []
    if not Path(named).is_dir():
        raise pytest.UsageError(f"FORCEREG_GOLDEN={named}: no such folder")
    return singles(group, Path(named))
