"""HDF5Output against the file that Caffe wrote."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forcereg.net.load import load_net
from tests.golden_cases import Case, golden_cases


@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("hdf5output")))
def test_the_file_is_caffes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = load_net(case.attrs["prototxt"], phase=case.attrs["phase"])
    net({name: torch.as_tensor(values) for name, values in case.tree("inputs").items()})
    expected = case.tree("file")
    (path,) = tmp_path.iterdir()
    with h5py.File(path) as file:
        layout = [[name, "dataset", list(item.shape), str(item.dtype)] for name, item in file.items()]
        assert sorted(layout) == sorted(case.json("layout"))
        for name, item in file.items():
            np.testing.assert_array_equal(item[()], expected[name])
