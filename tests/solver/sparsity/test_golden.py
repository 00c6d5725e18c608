"""Structured sparsity against a build of the SSL branch, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_cases import Case, golden_cases
from tests.golden_checks import check_sparse, check_squeezed
from tests.solver.graphs import on_device
from tests.solver.tape import Tape


def is_step(case: Case) -> bool:
    return case.attrs["kind"] != "forward"


@pytest.mark.parametrize("case", golden_cases("sparse", is_step))
def test_trajectory(case: Case, tmp_path: Path) -> None:
    check_sparse(case, tmp_path)


@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: case.attrs["kind"] == "mask"))
def test_masks_are_made_of_hdf5_models_too(case: Case, tmp_path: Path) -> None:
    """The branch makes none of them there."""
    check_sparse(case, tmp_path, ending=".caffemodel.h5")


ON_DEVICE = (
    "adam",
    "clip",
    "group",
    "iter_size2",
    "mask_adam",
    "mask_eltwise_full",
    "momentum_l2",
    "nesterov",
    "prune",
)


@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: case.id in ON_DEVICE))
def test_updates_that_read_nothing_back(case: Case, tmp_path: Path) -> None:
    """As on a GPU, whose updates the host doesn't wait for."""
    with on_device(Tape()):
        check_sparse(case, tmp_path)


@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: not is_step(case)))
def test_forward(case: Case) -> None:
    check_squeezed(case)
