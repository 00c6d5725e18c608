"""One forward and backward of every recorded layer case, against Caffe's numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from forcereg.load import load_net
from forcereg.schema.text import parse_net
from tests.golden_cases import Case, golden_cases

KNOWN_RANDOM = {"dropout_train"}


CASES = golden_cases("layers")


def close(found: torch.Tensor, expected: np.ndarray, what: str) -> None:
    found = found.detach().numpy()
    assert found.shape == expected.shape, what
    bound = 1e-5 * max(1.0, np.abs(expected).max(initial=0)) + 1e-4 * np.abs(expected)
    worst = (np.abs(found - expected) - bound).max(initial=-1)
    assert worst <= 0, f"{what}: off by {np.abs(found - expected).max()}"


def load(case: Case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded BatchNorm nets give lr_mult as Caffe demands it
        net = load_net(case.attrs["prototxt"], phase=case.attrs["phase"])
    with case.open() as group:
        with torch.no_grad():
            for name, blobs in net.params.items():
                for index, blob in enumerate(blobs):
                    blob.copy_(torch.as_tensor(group[f"params/{name}/{index}"][()]))
        data = {key: dict(group[key].items()) if key in group else {} for key in ("inputs", "output_grads")}
        inputs = {name: torch.from_numpy(item[()]) for name, item in data["inputs"].items()}
        grads = {name: torch.as_tensor(item[()]) for name, item in data["output_grads"].items()}
    return net, inputs, grads


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case: Case) -> None:
    net, inputs, output_grads = load(case)
    random = case.id in KNOWN_RANDOM
    forced = parse_net(case.attrs["prototxt"]).message.force_backward  # without it Caffe's inputs get no gradient
    for tensor in inputs.values():
        tensor.requires_grad_(bool(case.attrs["has_backward"] and forced))
    for blobs in net.params.values():
        for blob in blobs:
            if isinstance(blob, torch.nn.Parameter):
                blob.requires_grad_(True)  # the recorded nets ran with force_backward
    with case.open() as group:
        internal = list(group["internal"]) if "internal" in group else []
        inner = [name for name in internal if name in net.shapes]
        out = net(inputs, blobs=inner)
        assert sorted(group.get("outputs", ())) == sorted(net.spec.outputs)
        if not random:
            for name in net.spec.outputs:
                close(out[name], group[f"outputs/{name}"][()], name)
            for name in inner:
                close(out[name], group[f"internal/{name}"][()], name)
        if case.attrs["has_backward"]:
            check_backward(case, group, net, inputs, out, output_grads)
        if "params_after" in group:
            for name, blobs in group["params_after"].items():
                for index in blobs:
                    close(net.params[name][int(index)], blobs[index][()], f"{name}/{index} after")
        if "outputs_2nd" in group:  # what layers carry over, with nothing reset in between
            again = net(inputs)
            for name in group["outputs_2nd"]:
                close(again[name], group[f"outputs_2nd/{name}"][()], f"{name} of the second forward")


def check_backward(case, group, net, inputs, out, output_grads) -> None:
    total = net.total_loss(out)
    for name, grad in output_grads.items():
        total = total + (out[name] * grad).sum()
    if total.requires_grad:
        total.backward()
    if case.id in KNOWN_RANDOM:
        return
    recorded = dict(group["input_grads"].items()) if "input_grads" in group else {}
    for name, tensor in inputs.items():
        if name in recorded:
            grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            close(grad, recorded[name][()], f"gradient of {name}")
        else:
            assert tensor.grad is None, f"{name} has a gradient, Caffe gives none"
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            if isinstance(blob, torch.nn.Parameter) and f"param_grads/{name}/{index}" in group:
                close(blob.grad, group[f"param_grads/{name}/{index}"][()], f"gradient of {name}/{index}")


@pytest.mark.parametrize("case", [p for p in CASES if p.values[0].id in KNOWN_RANDOM])
def test_dropout(case: Case) -> None:
    net, inputs, grads = load(case)
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
