"""Every recorded layer case with a meaning at inference as a file of one layer, against Caffe's numbers."""

from __future__ import annotations

import re

import pytest
import torch

from tests.exports.golden import LIST, in_test_phase, listed
from tests.exports.nets import outputs, run, written
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import close

pytest.importorskip("onnxruntime")
LEFT_OUT = set(re.findall(r"^\| (\w+) \|", LIST.read_text(encoding="utf-8"), re.MULTILINE)) - {"case"}


def test_the_list_of_those_left_out_is_current() -> None:
    """`python -m tests.exports.golden` writes it."""
    assert LIST.read_text(encoding="utf-8") == listed()


@pytest.mark.parametrize("case", golden_cases("layers", lambda case: case.id not in LEFT_OUT))
def test_outputs(case: Case) -> None:
    net, inputs = in_test_phase(case)
    model = written(net)
    for name, values in outputs(net, model, run(model, inputs)):
        close(torch.from_numpy(values.copy()), case.load(f"outputs/{name}"), name)
