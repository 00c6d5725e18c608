"""Recurrent layers for the tests: one-layer nets and a step-by-step reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg.net.module import Net
from tests.layers.nets import layer_net

HIDDEN = {"LSTM": 2, "RNN": 1}
KINDS = pytest.mark.parametrize("kind", ["LSTM", "RNN"])


def param(size: int, expose: bool = False) -> str:
    return (
        f"recurrent_param {{ num_output: {size} expose_hidden: {str(expose).lower()} debug_info: true "
        'weight_filler { type: "uniform" min: -0.8 max: 0.8 } bias_filler { type: "uniform" min: -0.5 max: 0.5 } }'
    )


def recurrent(kind: str, size: int, inputs: Sequence[Tensor], expose: bool = False) -> Net:
    """A float64 net of one layer with these bottoms."""
    tops = 1 + HIDDEN[kind] if expose else 1
    return layer_net(kind, param(size, expose), *(x.shape for x in inputs), tops=tops).double()


def continues(steps: int, streams: int, seed: int = 0) -> Tensor:
    """cont: sequences begin at step 0 and, here and there, in the middle."""
    random = np.random.default_rng(seed)
    cont = (random.random((steps, streams)) < 0.7).astype(float)
    cont[0] = 0
    return torch.from_numpy(cont)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def reference(
    kind: str, blobs: Sequence[Any], x: Any, cont: Any, static: Any = None, state: Sequence[Any] = ()
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The top and the last hidden state, item by item as the formulas say. `state`: (N, H) each, default zeros."""
    arrays = [np.asarray(blob.detach()) for blob in blobs]
    w_x, bias = arrays[:2]
    w_h = arrays[3 if static is not None else 2]
    (steps, streams), size = x.shape[:2], w_h.shape[1]
    hidden = [np.asarray(s).copy() for s in state] or [np.zeros((streams, size)) for _ in range(HIDDEN[kind])]
    top = np.zeros((steps, streams, size))
    for t in range(steps):
        for n in range(streams):
            z = w_x @ np.ravel(np.asarray(x[t, n])) + bias + w_h @ (float(cont[t, n]) * hidden[0][n])
            if static is not None:
                z = z + arrays[2] @ np.ravel(static[n])
            if kind == "RNN":
                hidden[0][n] = np.tanh(z)
                top[t, n] = np.tanh(arrays[-2] @ hidden[0][n] + arrays[-1])
            else:
                i, f, o = (sigmoid(part) for part in np.split(z, 4)[:3])
                hidden[1][n] = float(cont[t, n]) * f * hidden[1][n] + i * np.tanh(np.split(z, 4)[3])
                top[t, n] = hidden[0][n] = o * np.tanh(hidden[1][n])
    return top, hidden


def assert_close(found: Tensor, expected: Any) -> None:
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(expected), rtol=1e-9, atol=1e-11)
