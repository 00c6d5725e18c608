"""One forward and backward of every recorded layer case, against Caffe's numbers."""

from __future__ import annotations

import pytest
import torch

from forcereg.schema.text import parse_net
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import KNOWN_RANDOM, check_layer, load_layer

CASES = golden_cases("layers")


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case: Case) -> None:
    check_layer(case)


@pytest.mark.parametrize("case", [p for p in CASES if p.values[0].id in KNOWN_RANDOM])
def test_dropout(case: Case) -> None:
    net, inputs, grads = load_layer(case)
    (name,) = inputs
    x = inputs[name].requires_grad_()
    (top,) = net.spec.outputs
    y = net(inputs)[top]
    ratio = parse_net(case.attrs["prototxt"]).message.layer[-1].dropout_param.dropout_ratio
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, x / (1 - ratio), 0.0))
    (y * grads[top]).sum().backward()
    torch.testing.assert_close(x.grad, torch.where(kept, grads[top] / (1 - ratio), 0.0))
    assert abs(kept.float().mean() - (1 - ratio)) < 0.2
