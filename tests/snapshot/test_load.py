"""Blobs are copied by layer name after all checks, and what was not copied is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.snapshot import LoadReport, ModelFile, load_into


def model(**layers: list[Any]) -> ModelFile:
    """A file with these layers; None in a list: the blob is not in the file."""
    blobs = {
        name: {index: np.asarray(values, np.float32) for index, values in enumerate(listed) if values is not None}
        for name, listed in layers.items()
    }
    return ModelFile(Path("x.caffemodel.h5"), blobs, {})


def test_layers_go_by_name_and_the_others_are_reported() -> None:
    params: dict[str, list[torch.Tensor]] = {
        "data": [],
        "ip1": [torch.zeros(2, 3), torch.zeros(2)],
        "ip2": [torch.full((1,), 4.0)],
        "ip3": [torch.full((1,), 5.0)],
    }
    source = model(mnist=[], ip1=[[[1, 2, 3], [4, 5, 6]], [7, 8]], ip3=[], old=[[1]])
    report = load_into(params, source, {})
    assert report == LoadReport(loaded=("ip1",), ignored=("mnist", "old"), fresh=("ip2", "ip3"))
    assert params["ip1"][0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert params["ip1"][1].tolist() == [7, 8]
    assert (params["ip2"][0].item(), params["ip3"][0].item()) == (4, 5)
    assert report.lines() == [
        "Ignoring source layer mnist",
        "Ignoring source layer old",
        "Loaded layers: ip1",
        "Layers left as initialised: ip2, ip3",
    ]


def test_a_file_that_fits_nothing_says_so() -> None:
    report = load_into({"ip": [torch.zeros(1)]}, model(other=[[1]]), {})
    assert report.lines()[1:] == [
        "Loaded layers: none; no layer of the file has weights here",
        "Layers left as initialised: ip",
    ]


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 5, dtype=torch.float64),
        torch.zeros(5, 4, 3, 2).permute(3, 2, 1, 0),
        torch.nn.Parameter(torch.zeros(2, 3, 4, 5)),
    ],
    ids=["channels-last", "float64", "permuted", "parameter"],
)
@pytest.mark.parametrize("frozen", [False, True], ids=["writable", "read-only"])
def test_any_target_is_filled_in_place(target: torch.Tensor, frozen: bool) -> None:
    values = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    values.flags.writeable = not frozen
    strides, where = target.stride(), target.data_ptr()
    load_into({"conv": [target]}, ModelFile(Path("x"), {"conv": {0: values}}, {}), {})
    np.testing.assert_array_equal(target.detach().numpy(), values)
    assert (target.stride(), target.data_ptr()) == (strides, where)
    with torch.no_grad():
        target.zero_()
    assert values.sum() == 7140  # the net does not share memory with the file's arrays


def test_a_borrowed_blob_may_be_missing() -> None:
    shared = torch.zeros(2)
    params = {"ip1": [shared, torch.zeros(1)], "ip2": [shared, torch.zeros(1)], "ip3": [shared]}
    source = model(ip1=[[1, 2], [3]], ip2=[None, [4]], ip3=[])
    report = load_into(params, source, {"ip2/0": "ip1/0", "ip3/0": "ip1/0"})
    assert report == LoadReport(loaded=("ip1", "ip2"), ignored=(), fresh=())
    assert [blob.tolist() for blob in params["ip2"]] == [[1, 2], [4]]


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ([[[1, 2]], [3]], r"layer 'last' blob 0: shape \(1, 2\) in the file, \(2, 1\) in the net; give the net"),
        ([[[1], [2]], 3], r"layer 'last' blob 1: shape \(\) in the file, \(1,\) in the net"),
        ([[[1], [2]]], r"layer 'last' blob 1: not in the file \(has \[0\]\), and not shared in the net"),
        ([None, [3]], r"layer 'last' blob 0: not in the file \(has \[1\]\), and not shared in the net"),
        ([[[1], [2]], [3], [4]], "layer 'last' has a blob 2 in the file, but only 2 blobs in the net"),
    ],
    ids=["transposed", "scalar", "no-bias", "borrowed-in-the-file", "too-many"],
)
def test_a_misfit_changes_nothing(last: list[Any], says: str) -> None:
    params = {"first": [torch.zeros(1)], "last": [torch.zeros(2, 1), torch.zeros(1)]}
    with pytest.raises(ForceregError, match=says) as caught:
        load_into(params, model(first=[[9]], last=last), {})
    assert str(caught.value).startswith("x.caffemodel.h5: ") and "\n" not in str(caught.value)
    assert not any(blob.any() for blobs in params.values() for blob in blobs)
