"""Structured sparsity against a build of the SSL branch, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_cases import Case, golden_cases
from tests.golden_checks import check_sparse, check_squeezed


def is_step(case: Case) -> bool:
    return case.attrs["kind"] != "forward"


@pytest.mark.parametrize("case", golden_cases("sparse", is_step))
def test_trajectory(case: Case, tmp_path: Path) -> None:
    check_sparse(case, tmp_path)


@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: case.attrs["kind"] == "mask"))
def test_masks_are_made_of_hdf5_models_too(case: Case, tmp_path: Path) -> None:
    """The branch makes none of them there."""
    check_sparse(case, tmp_path, ending=".caffemodel.h5")


@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: not is_step(case)))
def test_forward(case: Case) -> None:
    check_squeezed(case)
