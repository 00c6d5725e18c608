"""Caffe's recorded layers through its Python interface: whole passes, partial ones, given gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg.pycaffe as caffe
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import KNOWN_RANDOM, close

CASES = golden_cases("layers", lambda case: case.id not in KNOWN_RANDOM)


def same(found: np.ndarray, expected: Any, what: str) -> None:
    close(torch.from_numpy(found), expected[()], what)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_layer(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(case.attrs["prototxt"])
    net: Any = caffe.Net(str(file), getattr(caffe, case.attrs["phase"]))
    last = len(net.layers) - 1
    with case.open() as group:
        for name, blobs in net.params.items():
            for index, blob in enumerate(blobs):
                blob.data[...] = group[f"params/{name}/{index}"][()]
        inputs = dict(group["inputs"].items()) if "inputs" in group else {}
        for name, values in inputs.items():
            net.blobs[name].data[...] = values[()]
        # in two pieces, which is the same
        loss = net._forward(0, last // 2) + (net._forward(last // 2 + 1, last) if last else 0.0)
        assert np.isfinite(loss)
        for kind in ("outputs", "internal"):
            for name, values in group.get(kind, {}).items():
                if name in net.blobs:
                    same(net.blobs[name].data, values, name)
        if case.attrs["has_backward"]:
            for name, values in group.get("output_grads", {}).items():
                net.blobs[name].diff[...] += values[()]
            # in two pieces, too
            net._backward(last, last // 2)
            if last // 2:
                net._backward(last // 2 - 1, 0)
            recorded = group.get("input_grads", {})
            for name in inputs:
                if name in recorded:
                    same(net.blobs[name].diff, recorded[name], f"gradient of {name}")
                else:
                    assert not net.blobs[name].diff.any(), name
            for name, blobs in group.get("param_grads", {}).items():
                for index in blobs:
                    same(net.params[name][int(index)].diff, blobs[index], f"gradient of {name}/{index}")
        for name, blobs in group.get("params_after", {}).items():
            for index in blobs:
                same(net.params[name][int(index)].data, blobs[index], f"{name}/{index} after")
        if "outputs_2nd" in group:
            again = net.forward()
            for name, values in group["outputs_2nd"].items():
                same(again[name], values, f"{name} of the second forward")
