"""The bundled golden files: complete, readable, and what the bundling script makes of its sources."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from bundle_golden import GROUPS, bundle

from tests.golden_cases import BUNDLED, Case, golden_cases

COUNTS = {
    "data": 25,
    "decompose": 15,
    "fillers": 57,
    "force": 85,
    "layers": 162,
    "lenet": 1,
    "snapshots": 5,
    "solver": 30,
    "sparse": 45,
}


def test_groups_are_those_of_the_script() -> None:
    assert sorted(path.stem for path in BUNDLED.glob("*.h5")) == sorted(GROUPS) == sorted(COUNTS)


@pytest.mark.parametrize("group", sorted(COUNTS))
def test_no_case_is_missing(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCEREG_GOLDEN", raising=False)
    assert len(golden_cases(group)) == COUNTS[group]


@pytest.fixture
def golden_dir(tmp_path: Path) -> Path:
    """A golden folder with one plain case and one snapshot folder."""
    (tmp_path / "solver").mkdir()
    (tmp_path / "snapshots" / "plain").mkdir(parents=True)
    for path in (tmp_path / "solver" / "sgd.h5", tmp_path / "snapshots" / "plain" / "case.h5"):
        with h5py.File(path, "w") as file:
            file.attrs["net"] = 'name: "n"'
            file.attrs["order"] = '["conv1/0"]'
            file["params/conv1/0"] = np.arange(600, dtype=np.float32).reshape(20, 30)
            file["loss"] = np.float64(0.25)
    (tmp_path / "snapshots" / "plain" / "snap_iter_1.caffemodel").write_bytes(b"\x00\x01\xff")
    return tmp_path


def check(case: Case) -> None:
    assert case.attrs["net"] == 'name: "n"'
    assert case.json("order") == ["conv1/0"]
    assert case.load("params/conv1/0").dtype == np.float32
    np.testing.assert_array_equal(case.load("params/conv1/0"), np.arange(600).reshape(20, 30))
    assert case.load("loss") == 0.25
    assert list(case.tree("params")) == ["conv1/0"]
    assert case.tree("nowhere") == {}


def test_bundling_keeps_everything(golden_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "snapshots.h5"
    assert bundle(golden_dir / "snapshots", out) == 1
    case = Case("plain", out, "plain", {"net": 'name: "n"', "order": '["conv1/0"]'})
    check(case)
    assert case.file("snap_iter_1.caffemodel") == b"\x00\x01\xff"
    first = out.read_bytes()
    bundle(golden_dir / "snapshots", out)
    assert out.read_bytes() == first


def test_single_files_are_found(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCEREG_GOLDEN", str(golden_dir))
    for group, name in (("solver", "single-sgd"), ("snapshots", "single-plain")):
        (param,) = [param for param in golden_cases(group) if param.id == name]
        check(param.values[0])
    assert param.values[0].file("snap_iter_1.caffemodel") == b"\x00\x01\xff"


def test_a_missing_golden_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCEREG_GOLDEN", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.UsageError, match="no such folder"):
        golden_cases("solver")


@pytest.mark.parametrize("case", golden_cases("data"))
def test_every_recorded_data_case_is_of_a_tested_kind(case: Case) -> None:
    assert case.id.split("_")[0] in ("lmdb", "hdf5", "image", "memory", "dummy", "hdf5output")
