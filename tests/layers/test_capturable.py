"""Every layer that says so can be recorded as a graph: its recorded Caffe case, replayed, is what it is when run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import load_layer
from tests.solver.tape import Tape

LOOKING = {"BatchReindex", "Embed"}
"""They look at their indices on the CPU, where that costs nothing, and only there."""


def passes(net: Net, inputs: dict[str, Tensor], grads: dict[str, Tensor]) -> list[Tensor]:
    """A forward and backward: outputs and all gradients."""
    for tensor in (*inputs.values(), *net.parameters()):
        tensor.grad = None
    outputs = net(inputs)
    total = sum(((outputs[name] * grad).sum() for name, grad in grads.items()), net.total_loss(outputs))
    if total.requires_grad:
        total.backward()
    found = [tensor.grad for tensor in (*inputs.values(), *net.parameters()) if tensor.grad is not None]
    return [*(blob.detach() for blob in outputs.values()), *found]


def prepared(case: Case) -> tuple[Net, dict[str, Tensor], dict[str, Tensor]]:
    """The case's net, inputs with gradients where Caffe has some, and output gradients."""
    net, inputs, grads = load_layer(case)
    for tensor in inputs.values():
        tensor.requires_grad_(bool(case.attrs["has_backward"]))
    return net, inputs, grads


@pytest.mark.parametrize("case", golden_cases("layers"))
def test_replayed_as_run(case: Case) -> None:
    ours, theirs = prepared(case), prepared(case)
    layers = [layer for _, layer in ours[0].built if layer is not None]
    if not all(layer.capturable for layer in layers):
        with pytest.raises(ForceregError, match="not permitted when stream is capturing"):
            Tape().record(lambda: passes(*ours))
        return
    if LOOKING & {spec.type for spec, _ in ours[0].built}:
        return
    assert len(passes(*ours)) == len(passes(*theirs))
    replay, results = Tape().record(lambda: passes(*ours))
    for seed in range(2):
        torch.manual_seed(seed)
        replay()
        torch.manual_seed(seed)
        for found, expected in zip(results, passes(*theirs), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for found, expected in zip(ours[0].state_dict().values(), theirs[0].state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
