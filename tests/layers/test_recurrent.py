"""LSTM, RNN and LSTMUnit: one forward and backward against references; what cannot be built or run."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from tests.layers.nets import gradcheck, layer_error, layer_net, layer_text, noise, run
from tests.layers.recurrence import HIDDEN, KINDS, assert_close, continues, param, recurrent, reference, sigmoid

# -- forward


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, int, list[Tensor], bool, bool]:
    """Kind, H, bottoms, whether there is a static input, whether the hidden state is exposed."""
    kind, static, expose = draw(st.sampled_from(sorted(HIDDEN))), draw(st.booleans()), draw(st.booleans())
    size = st.integers(1, 4)
    steps, streams, hidden = draw(size), draw(size), draw(size)
    trailing = draw(st.lists(st.integers(1, 3), max_size=3))
    seed = draw(st.integers(0, 99))
    flags = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=steps * streams, max_size=steps * streams))
    inputs = [noise(steps, streams, *trailing, seed=seed), torch.tensor(flags).double().reshape(steps, streams)]
    if static:
        inputs.append(noise(streams, *draw(st.lists(st.integers(1, 3), max_size=2)), seed=seed + 1))
    if expose:
        inputs += [noise(1, streams, hidden, seed=seed + 2 + i) for i in range(HIDDEN[kind])]
    return kind, hidden, inputs, static, expose


@settings(max_examples=60)
@given(problems())
def test_two_forwards(problem: tuple[str, int, list[Tensor], bool, bool]) -> None:
    """The second starts where the first ended, or with expose_hidden from its bottoms again."""
    kind, size, inputs, static, expose = problem
    net = recurrent(kind, size, inputs, expose)
    side = inputs[2] if static else None
    state = [h[0] for h in inputs[2 + static :]]
    for _ in range(2):
        top, *last = run(net, *inputs)
        expected, after = reference(kind, net.module("l").blobs, *inputs[:2], side, state)
        assert top.shape == net.shapes["y0"]
        assert_close(top, expected)
        for found, wanted in zip(last, after, strict=bool(last)):
            assert_close(found[0], wanted)
        state = state if expose else after


def test_blobs_and_their_shapes() -> None:
    x, cont, static = torch.zeros(3, 2, 5, 2), torch.ones(3, 2), torch.zeros(2, 7)

    def shapes(kind: str, *inputs: Tensor) -> list[tuple[int, ...]]:
        return [tuple(blob.shape) for blob in recurrent(kind, 4, inputs).module("l").blobs]

    assert shapes("LSTM", x, cont) == [(16, 10), (16,), (16, 4)]
    assert shapes("LSTM", x, cont, static) == [(16, 10), (16,), (16, 7), (16, 4)]
    assert shapes("RNN", x, cont) == [(4, 10), (4,), (4, 4), (4, 4), (4,)]
    assert shapes("RNN", x, cont, static) == [(4, 10), (4,), (4, 7), (4, 4), (4, 4), (4,)]


def test_fillers_go_to_weights_and_biases() -> None:
    fillers = 'weight_filler { type: "constant" value: 2 } bias_filler { type: "constant" value: 3 }'
    for kind in HIDDEN:
        net = layer_net(kind, f"recurrent_param {{ num_output: 2 {fillers} }}", (2, 2, 3), (2, 2), (2, 5))
        for blob in net.module("l").blobs:
            assert torch.equal(blob, torch.full_like(blob, 2.0 if blob.dim() == 2 else 3.0))


def test_macs() -> None:
    shapes = ((3, 2, 5), (3, 2), (2, 7))
    assert layer_net("LSTM", param(4), *shapes).module("l").macs == 3 * 2 * (16 * 5 + 16 * 4) + 2 * 16 * 7
    assert layer_net("RNN", param(4), *shapes).module("l").macs == 3 * 2 * (4 * 5 + 2 * 4 * 4) + 2 * 4 * 7


def test_unit_is_one_step() -> None:
    c, z, cont = noise(1, 3, 2), noise(1, 3, 8, seed=1), torch.tensor([[1.0, 0.0, 0.5]]).double()
    after, h = run(layer_net("LSTMUnit", "", c.shape, z.shape, cont.shape, tops=2).double(), c, z, cont)
    i, f, o = (sigmoid(part.numpy()) for part in z.chunk(4, -1)[:3])
    expected = cont[..., None].numpy() * f * c.numpy() + i * np.tanh(z[..., 6:].numpy())
    assert_close(after, expected)
    assert_close(h, o * np.tanh(expected))


# -- gradients


@KINDS
@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
@pytest.mark.parametrize("expose", [False, True], ids=["", "expose"])
@pytest.mark.parametrize("steps", [1, 4])
def test_gradients(kind: str, static: bool, expose: bool, steps: int) -> None:
    """Of x, the static input and all blobs; cont clears in the middle, and at step 0 if the state carries."""
    cont = continues(steps, 3)
    if expose:
        cont[0] = 1
    inputs = [noise(steps, 3, 2, 2).requires_grad_(), cont]
    if static:
        inputs.append(noise(3, 3, seed=1).requires_grad_())
    if expose:
        inputs += [noise(1, 3, 2, seed=2 + i) for i in range(HIDDEN[kind])]
    assert gradcheck(recurrent(kind, 2, inputs, expose), *inputs)


@pytest.mark.parametrize("top", [0, 1])
def test_gradients_of_unit(top: int) -> None:
    c, z, cont = noise(1, 3, 2).requires_grad_(), noise(1, 3, 8, seed=1).requires_grad_(), torch.ones(1, 3).double()
    cont[0, 1] = 0
    net = layer_net("LSTMUnit", "", c.shape, z.shape, cont.shape, tops=2)
    assert gradcheck(net, c, z, cont, top=top)


def caffe_unit(c: Tensor, z: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """LSTMUnit by plain autograd, but that f, already multiplied by cont, has the derivative f * (1 - f)."""
    i, f, o = z.chunk(4, -1)[0].sigmoid(), z.chunk(4, -1)[1], z.chunk(4, -1)[2].sigmoid()
    value = (cont * f.sigmoid()).detach()
    after = (value + value * (1 - value) * (f - f.detach())) * c + i * z.chunk(4, -1)[3].tanh()
    return after, o * after.tanh()


def test_gradient_of_unit_where_cont_is_no_flag() -> None:
    c, z = noise(1, 4, 2).requires_grad_(), noise(1, 4, 8, seed=1).requires_grad_()
    cont = torch.tensor([[0.0, 0.25, 0.8, 1.0]]).double().requires_grad_()
    weights = noise(2, 1, 4, 2, seed=2)

    def grads(tops: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weights * torch.stack(list(tops))).sum(), (c, z, cont), allow_unused=True)

    found = grads(run(layer_net("LSTMUnit", "", c.shape, z.shape, cont.shape, tops=2).double(), c, z, cont))
    expected = grads(caffe_unit(c, z, cont.detach()[..., None]))
    assert found[2] is None
    for ours, caffes in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, caffes)


def test_gradient_of_lstm_where_cont_is_no_flag() -> None:
    x, cont = noise(4, 3, 2).requires_grad_(), torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).double()
    h, c = noise(3, 2, seed=1), noise(3, 2, seed=2)
    inputs = (x, cont, h[None], c[None])
    net = recurrent("LSTM", 2, inputs, expose=True)
    w_x, bias, w_h = net.module("l").blobs
    weights = noise(4, 3, 2, seed=3)
    found = torch.autograd.grad((run(net, *inputs)[0] * weights).sum(), (x, w_x, bias, w_h))
    tops = []
    for t in range(4):
        keep = cont[t][:, None]
        c, h = caffe_unit(c, x[t] @ w_x.t() + bias + (keep * h) @ w_h.t(), keep)
        tops.append(h)
    expected = torch.autograd.grad((torch.stack(tops) * weights).sum(), (x, w_x, bias, w_h))
    for ours, caffes in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, caffes)


@KINDS
def test_hidden_bottoms_and_tops_pass_no_gradient(kind: str) -> None:
    inputs = [noise(3, 2, 2), continues(3, 2, seed=1), *(noise(1, 2, 2, seed=2 + i) for i in range(HIDDEN[kind]))]
    inputs = [x.requires_grad_() for x in inputs]
    net = recurrent(kind, 2, inputs, expose=True)
    top, *last = run(net, *inputs)
    assert not any(tensor.requires_grad for tensor in last)
    (top.sum() + sum(tensor.sum() for tensor in last)).backward()
    alone = inputs[0].grad
    assert [x.grad is None for x in inputs] == [False] + [True] * (1 + HIDDEN[kind])
    inputs[0].grad = None
    run(net, *inputs)[0].sum().backward()
    assert torch.equal(inputs[0].grad, alone)


@KINDS
@pytest.mark.parametrize("frozen", range(3))
def test_frozen_blob_gets_no_gradient_and_changes_no_other(kind: str, frozen: int) -> None:
    inputs = [noise(3, 2, 2), continues(3, 2)]
    mults = " ".join(f"param {{ lr_mult: {int(i != frozen)} }}" for i in range(3))
    net = load_net(layer_text(kind, mults + param(2), *(x.shape for x in inputs)), phase="TRAIN", seed=0).double()
    free = recurrent(kind, 2, inputs)
    for each in (net, free):
        run(each, *inputs)[0].sum().backward()
    for index, (blob, other) in enumerate(zip(net.module("l").blobs, free.module("l").blobs, strict=True)):
        assert (blob.grad is None) == (index == frozen)
        if index != frozen:
            torch.testing.assert_close(blob.grad, other.grad)


# -- what cannot be built or run

X, CONT = (3, 2, 5), (3, 2)
BROKEN = {
    "no-num_output": ("LSTM", "", (X, CONT), 1, "num_output is missing"),
    "x-of-one-axis": ("LSTM", param(2), ((3,), CONT), 1, r"bottom 0 has shape \[3\]; expected \(T, N, ...\)"),
    "no-time-steps": ("RNN", param(2), ((0, 2, 5), (0, 2)), 1, "expected .* with T >= 1"),
    "cont-per-step": ("LSTM", param(2), (X, (3,)), 1, r"bottom 1 has shape \[3\]; expected \[3, 2\]: \(T, N\)"),
    "cont-of-3-axes": ("RNN", param(2), (X, (3, 2, 1)), 1, r"bottom 1 has shape \[3, 2, 1\]; expected \[3, 2\]"),
    "cont-transposed": ("RNN", param(2), (X, (2, 3)), 1, r"bottom 1 has shape \[2, 3\]; expected \[3, 2\]"),
    "static-of-another-N": ("RNN", param(2), (X, CONT, (3, 4)), 1, r"2 has shape \[3, 4\]; .* N = 2 of bottom 0"),
    "static-without-axes": ("LSTM", param(2), (X, CONT, ()), 1, r"bottom 2 has shape \[\]; expected \(N, ...\)"),
    "hidden-not-exposed": ("LSTM", param(2), (X, CONT, (1, 2, 2), (1, 2, 2)), 1, "hidden false it takes 2 or 3"),
    "tops-not-exposed": ("LSTM", param(2), (X, CONT), 3, r"3 top blobs; .* and 1 top \(output\)"),
    "exposed-without-h": ("RNN", param(2, True), (X, CONT), 2, r"takes 3 or 4 bottoms \(x, cont, .*, h0\)"),
    "exposed-without-c": ("LSTM", param(2, True), (X, CONT, (1, 2, 2)), 3, r"takes 4 or 5 bottoms \(.*, h0, c0\)"),
    "exposed-one-top": ("LSTM", param(2, True), (X, CONT, (1, 2, 2), (1, 2, 2)), 1, r"3 tops \(output, hT, cT\)"),
    "h-of-two-axes": ("RNN", param(2, True), (X, CONT, (2, 2)), 2, r"bottom 2 .*expected \[1, 2, 2\]: \(1, N, num_out"),
    "h-of-another-N": ("RNN", param(2, True), (X, CONT, (1, 3, 2)), 2, r"has shape \[1, 3, 2\]; expected \[1, 2, 2\]"),
    "c-of-another-H": ("LSTM", param(2, True), (X, CONT, (1, 2, 2), (1, 2, 3)), 3, r"bottom 3 has shape \[1, 2, 3\]"),
    "one-bottom": ("LSTM", param(2), (X,), 1, "has 1 bottom blobs; type LSTM takes 2 to 5"),
    "huge-H": ("LSTM", param(1 << 31), (X, CONT), 1, "blob 'weight_x' would have shape"),
    "unit-of-2-steps": ("LSTMUnit", "", ((2, 3, 4), (2, 3, 16), (2, 3)), 2, r"expected c \[1, N, H\], z \[1, N, 4H\]"),
    "unit-with-a-small-z": ("LSTMUnit", "", ((1, 3, 4), (1, 3, 12), (1, 3)), 2, r"has bottoms .* \[1, 3, 12\]"),
    "unit-of-another-N": ("LSTMUnit", "", ((1, 3, 4), (1, 3, 16), (1, 2)), 2, r"has bottoms .* \[1, 2\]"),
}


@pytest.mark.parametrize("kind, text, shapes, tops, error", BROKEN.values(), ids=BROKEN)
def test_broken_layers(kind: str, text: str, shapes: Sequence[Sequence[int]], tops: int, error: str) -> None:
    assert re.search(error, layer_error(kind, text, *shapes, tops=tops))


@KINDS
@pytest.mark.parametrize(
    "x, cont, error",
    [
        ((4, 2, 5), (4, 2), r"shape \[4, 2, 5\]: 4 time steps of 5 values; the layer was built for 3 of 5"),
        ((3, 2, 6), (3, 2), "3 time steps of 6 values; the layer was built for 3 of 5"),
        ((3, 4, 5), (3, 2), r"1 has shape \[3, 2\]; expected \[3, 4\]"),
    ],
    ids=["T", "D", "N"],
)
def test_other_sizes_at_run_time(kind: str, x: Sequence[int], cont: Sequence[int], error: str) -> None:
    net = layer_net(kind, param(2), X, CONT)
    with pytest.raises(ForceregError, match=f"^<text>:3: layer 'l': bottom .*{error}") as caught:
        run(net, torch.zeros(x), torch.ones(cont))
    assert "\n" not in str(caught.value)
