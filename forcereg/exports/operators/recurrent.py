"""Layers with hidden state, step by step: ONNX's own LSTM and RNN have no `cont`, which ends sequences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from forcereg.exports.graph import Place, Value, numbers
from forcereg.layers import recurrent
from forcereg.registry import onnx_form

State = tuple[Value, ...]
Step = Callable[[Place, Value, Value, State], State]


@onnx_form("LSTM", "Reshape Gemm Add Split Mul MatMul Sigmoid Tanh Concat")
def lstm(layer: recurrent.LSTM, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    hidden, state = _unrolled(layer, g, bottoms, _lstm_step)
    return (hidden, *(state if layer.exposed else ()))


@onnx_form("RNN", "Reshape Gemm Add Split Mul MatMul Tanh Concat")
def rnn(layer: recurrent.RNN, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    hidden, state = _unrolled(layer, g, bottoms, _rnn_step)
    product = g("MatMul", hidden, g.constant(numbers(layer.weight_blob("weight_o")).T, "weight_o"))
    return (g("Tanh", g("Add", product, g.weight(layer, "bias_o"))), *(state if layer.exposed else ()))


@onnx_form("LSTMUnit", "Unsqueeze Split Sigmoid Tanh Mul Add")
def lstm_unit(layer: recurrent.LSTMUnit, g: Place, c: Value, z: Value, cont: Value) -> tuple[Value, Value]:
    h, c = _unit(g, z, g("Unsqueeze", cont, g.ints([-1], "axis")), c, c.size(2))
    return c, h


def _unrolled(
    layer: recurrent.LSTM | recurrent.RNN, g: Place, bottoms: tuple[Value, ...], step: Step
) -> tuple[Value, State]:
    """h of every step (T, N, H), and the hidden state behind the last one, (1, N, H) each.

    What a layer carries from one forward to the next begins as zeros: a file has no memory.
    """
    x, cont = bottoms[:2]
    steps, streams, size = x.size(0), x.size(1), layer.size
    z = g("Gemm", g("Reshape", x, g.ints([steps * streams, layer.inputs], "rows")), g.weight(layer, "weight_x"),
          g.weight(layer, "bias"), transB=1)  # fmt: skip
    z = g("Reshape", z, g.ints([steps, streams, layer.gates * size], "steps"))
    if layer.static:
        z = g("Add", z, g("Gemm", g.items(bottoms[2]), g.weight(layer, "weight_static"), transB=1))
    cont = g("Unsqueeze", cont, g.ints([-1], "axis"))
    ones = g.ints([1] * steps, "ones")
    products, keeps = ((one,) if steps == 1 else g.several("Split", steps, one, ones, axis=0) for one in (z, cont))
    weight = g.constant(numbers(layer.weight_blob("weight_h")).T, "weight_h")
    # the same zeros for all: nothing writes to them
    zeros = None if layer.exposed else g.constant(np.zeros((1, streams, size)), "before")
    state = bottoms[2 + layer.static :] if zeros is None else (zeros,) * len(layer.hidden)
    outputs = []
    for product, keep in zip(products, keeps, strict=True):
        before = g("MatMul", g("Mul", state[0], keep), weight)
        state = step(g, g("Add", product, before), keep, state)
        outputs.append(state[0])
    return (outputs[0] if steps == 1 else g("Concat", *outputs, axis=0)), state


def _lstm_step(g: Place, z: Value, cont: Value, state: State) -> State:
    return _unit(g, z, cont, state[1], state[0].size(2))


def _rnn_step(g: Place, z: Value, cont: Value, state: State) -> State:
    return (g("Tanh", z),)


def _unit(g: Place, z: Value, cont: Value, c: Value, size: int) -> tuple[Value, Value]:
    """h and c of the next step; z (1, N, 4H) has the gates i, f, o, g."""
    i, f, o, new = g.several("Split", 4, z, g.ints([size] * 4, "gates"), axis=2)
    i, f, o = (g("Sigmoid", gate) for gate in (i, f, o))
    after = g("Add", g("Mul", g("Mul", f, cont), c), g("Mul", i, g("Tanh", new)))
    h = g("Mul", o, g("Tanh", after))
    h.dims = c.dims
    after.dims = c.dims
    return h, after
