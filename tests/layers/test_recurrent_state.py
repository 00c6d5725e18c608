"""The hidden state of recurrent layers over forward calls: carried over, cleared, reset, never shared."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import torch
from torch import Tensor

from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.layers.nets import layer_net, layer_text, noise, run
from tests.layers.recurrence import HIDDEN, KINDS, assert_close, continues, param, recurrent, reference


@KINDS
def test_two_calls_are_one_long_sequence(kind: str) -> None:
    x, cont = noise(6, 2, 3), torch.ones(6, 2).double()
    cont[4, 1] = 0
    (whole,) = run(recurrent(kind, 4, [x, cont]), x, cont)
    net = recurrent(kind, 4, [x[:3], cont[:3]])
    halves = [run(net, x[part], cont[part])[0] for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.cat(halves), whole)


@KINDS
def test_no_gradient_across_calls(kind: str) -> None:
    """The second call's graph ends at the carried state, and overwriting that leaves the first's intact."""
    first, second, cont = noise(2, 2, 3).requires_grad_(), noise(2, 2, 3, seed=1).requires_grad_(), torch.ones(2, 2)
    net = recurrent(kind, 4, [first, cont])
    tops = [run(net, x, cont.double())[0] for x in (first, second)]
    tops[1].sum().backward()
    assert first.grad is None
    tops[0].sum().backward()
    assert first.grad is not None


@KINDS
def test_cont_zero_clears_one_stream(kind: str) -> None:
    x, cont = noise(1, 2, 3), torch.tensor([[0.0, 1.0]]).double()
    net = recurrent(kind, 4, [x, cont])
    (first,) = run(net, x, cont)
    (second,) = run(net, x, cont)
    assert torch.equal(second[0, 0], first[0, 0])
    assert (second[0, 1] - first[0, 1]).abs().max() > 1e-3


@KINDS
def test_reset(kind: str) -> None:
    inputs = [noise(2, 2, 3), torch.ones(2, 2).double()]
    net = recurrent(kind, 4, inputs)
    (first,) = run(net, *inputs)
    assert not torch.equal(run(net, *inputs)[0], first)
    net.reset_state()
    assert torch.equal(run(net, *inputs)[0], first)


@KINDS
def test_other_numbers_of_streams(kind: str) -> None:
    """Fewer: the first ones go on and the others wait; more than ever: all start from zeros."""
    x, cont = noise(2, 5, 3), torch.ones(2, 5).double()
    net = recurrent(kind, 4, [x[:, :3], cont[:, :3]])
    blobs = net.module("l").blobs

    def forward(streams: int) -> Tensor:
        return run(net, x[:, :streams], cont[:, :streams])[0]

    forward(3)
    _, state = reference(kind, blobs, x[:, :3], cont)
    top, after = reference(kind, blobs, x[:, :2], cont, state=[s[:2] for s in state])
    assert_close(forward(2), top)
    state = [np.concatenate((new, old[2:])) for new, old in zip(after, state, strict=True)]
    assert_close(forward(3), reference(kind, blobs, x[:, :3], cont, state=state)[0])
    assert_close(forward(5), reference(kind, blobs, x, cont)[0])


@KINDS
def test_state_travels_with_the_net(kind: str) -> None:
    inputs = [noise(2, 2, 3), torch.ones(2, 2).double()]
    net = recurrent(kind, 4, inputs)
    run(net, *inputs)
    others = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net).float()]
    (expected,) = run(net, *inputs)
    for other in others:
        dtype = next(other.parameters()).dtype
        found = run(other, *(x.to(dtype) for x in inputs))[0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@KINDS
def test_state_is_no_part_of_the_weights(kind: str) -> None:
    shapes = ((2, 2, 3), (2, 2))
    train, test = (layer_net(kind, param(4), *shapes, phase=phase) for phase in ("TRAIN", "TEST"))
    assert len(train.state_dict()) == len(train.module("l").blobs)
    test.share_params(train)
    x, cont = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2)
    (first,) = run(train, x, cont)
    assert torch.equal(run(test, x, cont)[0], first)  # so it has not been moved on by the training net
    exposed = layer_net(kind, param(4, True), *shapes, *[(1, 2, 4)] * HIDDEN[kind], tops=1 + HIDDEN[kind])
    assert exposed.module("l").carried() == {}


@KINDS
def test_inference_mode_before_training(kind: str) -> None:
    inputs = [noise(2, 2, 3), torch.ones(2, 2).double()]
    net = recurrent(kind, 4, [x[:, :1] for x in inputs])
    with torch.inference_mode():
        (first,) = run(net, *inputs)
    net.reset_state()
    (again,) = run(net, *inputs)
    again.sum().backward()
    assert torch.equal(first, again.detach())


def test_cont_of_another_type() -> None:
    x, cont = noise(3, 2, 2), continues(3, 2)
    net = recurrent("LSTM", 2, [x, cont])
    (expected,) = run(net, x, cont)
    for dtype in (torch.float32, torch.int64, torch.bool):
        net.reset_state()
        assert torch.equal(run(net, x, cont.to(dtype))[0], expected)


def shared_pair(kind: str) -> Net:
    """Two layers with the same blobs, one after the other."""
    names = " ".join(f'param {{ name: "p{i}" }}' for i in range(3 if kind == "LSTM" else 5))
    first = layer_text(kind, names + param(2), (3, 2, 2), (3, 2))
    second = f'layer {{ name: "m" type: "{kind}" bottom: "y0" bottom: "x1" top: "z" {names} {param(2)} }}'
    return load_net(first + "\n" + second, phase="TRAIN", seed=0).double()


@KINDS
def test_layers_that_share_blobs_have_a_state_each(kind: str) -> None:
    net, inputs = shared_pair(kind), {"x0": noise(3, 2, 2), "x1": torch.ones(3, 2).double()}
    blobs = net.module("l").blobs
    state: list[list[np.ndarray]] = [[], []]
    for _ in range(2):
        out = net(inputs, blobs=["y0"])
        first, state[0] = reference(kind, blobs, *inputs.values(), state=state[0])
        second, state[1] = reference(kind, blobs, first, inputs["x1"], state=state[1])
        assert_close(out["y0"], first)
        assert_close(out["z"], second)

    def function(*_: Tensor) -> Tensor:
        net.reset_state()
        return net(inputs)["z"]

    assert torch.autograd.gradcheck(function, blobs)
