"""Layers with hidden state over time: LSTM, RNN, and LSTM's single step LSTMUnit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape, count
from forcereg.layers.recording import apply
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec


class _LateWeight(torch.autograd.Function):
    """Hands on the input products; in backward it gives the recurrent weight its gradient, in one matmul.

    What step t adds to the products is weight @ before[t], so the weight's gradient is the sum over t of
    d products[t] x before[t]; step by step autograd would add up T gradients of the weight's size. The steps
    append to `before` after this call.
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, weight: Tensor, before: list[Tensor]) -> Tensor:
        ctx.before = before
        return products.view_as(products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        wanted = ctx.needs_input_grad[1]
        return grad, grad.flatten(0, 1).t() @ torch.cat(ctx.before) if wanted else None, None


class _Unit(torch.autograd.Function):
    """One LSTM step: c (..., H), z (..., 4H) for gates i, f, o, g, cont (..., 1) -> the next c and h.

    The gradient takes f * (1 - f) of the f that cont has multiplied, as Caffe does; cont gets none.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, z: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        size = c.shape[-1]
        # i, f and o lie side by side: one sigmoid for all
        gates, g = z[..., : 3 * size].sigmoid(), z[..., 3 * size :].tanh()
        i, f, o = gates.chunk(3, -1)
        # f is a view of gates, so that backward finds it multiplied, as Caffe's does
        f.mul_(cont)
        after = torch.addcmul(f * c, i, g)
        squashed = after.tanh()
        ctx.save_for_backward(c, gates, g, squashed)
        return after, o * squashed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_c: Tensor, d_h: Tensor) -> tuple[Tensor, Tensor, None]:
        # the backward kernels of torch's own sigmoid and tanh: one launch for each
        aten = torch.ops.aten
        c, gates, g, squashed = ctx.saved_tensors
        i, f, o = gates.chunk(3, -1)
        d_c = d_c + aten.tanh_backward(d_h * o, squashed)
        d_gates = torch.cat((d_c * g, d_c * c, d_h * squashed), -1)
        d_z = torch.cat((aten.sigmoid_backward(d_gates, gates), aten.tanh_backward(d_c * i, g)), -1)
        return d_c * f, d_z, None


class _Recurrent(Layer):
    """What LSTM and RNN share: bottoms x (T, N, ...), cont (T, N) and maybe a static input (N, ...), top (T, N, H).

    With `expose_hidden` the first hidden state comes from further bottoms and the last goes to further tops,
    (1, N, H) each, no gradient passing through either. Otherwise it is carried over: a forward starts where the
    one before it ended (without a gradient across), and only cont = 0 clears it, per stream. The first N of the
    carried streams are used and replaced; more streams than are carried start from zero.
    """

    labels = frozenset({1})
    hidden: ClassVar[tuple[str, ...]]
    """The hidden tensors, (N, H) each; the first is multiplied by the recurrent weight."""
    gates: ClassVar[int]
    """Rows of z per hidden unit."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.recurrent_param
        if message.num_output < 1:
            raise spec.fail("num_output is missing; set recurrent_param { num_output: N } with N >= 1")
        self.size, self.exposed = message.num_output, message.expose_hidden
        self.static = self._has_static(spec)
        if len(shapes[0]) < 2 or shapes[0][0] < 1:
            raise spec.fail(f"bottom 0 has shape {list(shapes[0])}; expected (T, N, ...) with T >= 1 time steps")
        self.steps, streams = shapes[0][:2]
        self.inputs = count(shapes[0][2:])
        self._check(shapes)
        self._add_blobs([self.inputs, *([count(shapes[2][1:])] if self.static else [])])
        if not self.exposed:
            for name in self.hidden:
                self.register_buffer(name, self.reserve("hidden state", (streams, self.size)), persistent=False)
        self.macs = streams * sum(
            blob.numel() * (1 if name == "weight_static" else self.steps)
            for name, blob in zip(self.blob_names, self.blobs, strict=True)
            if blob.dim() == 2
        )
        output = (self.steps, streams, self.size)
        self.out_shapes = (output, *((1, *output[1:]) for _ in spec.tops[1:]))

    def _has_static(self, spec: LayerSpec) -> bool:
        """Whether there is a static input, told by the number of bottoms; raises ForceregError if it can't be."""
        extra = len(self.hidden) if self.exposed else 0
        static = len(spec.bottoms) - 2 - extra
        if static not in (0, 1) or len(spec.tops) != 1 + extra:
            names = "".join(f", {name}0" for name in self.hidden) if extra else ""
            tops = "".join(f", {name}T" for name in self.hidden) if extra else ""
            raise spec.fail(
                f"has {len(spec.bottoms)} bottom and {len(spec.tops)} top blobs; with expose_hidden "
                f"{str(self.exposed).lower()} it takes {2 + extra} or {3 + extra} bottoms "
                f"(x, cont, maybe a static input{names}) and {1 + extra} top{'s' if extra else ''} (output{tops})"
            )
        return static == 1

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises ForceregError unless the bottoms agree on T, N and H, and x with what the layer was built for."""
        x = tuple(shapes[0])
        if x[0] != self.steps or count(x[2:]) != self.inputs:
            raise self.spec.fail(
                f"bottom 0 has shape {list(x)}: {x[0]} time steps of {count(x[2:])} values; the layer was built for "
                f"{self.steps} of {self.inputs}, give those or declare the input with this shape"
            )
        self._expect(shapes, 1, (self.steps, x[1]), "(T, N) as in bottom 0, 0 where a sequence begins and else 1")
        if self.static and tuple(shapes[2][:1]) != x[1:2]:
            raise self.spec.fail(f"bottom 2 has shape {list(shapes[2])}; expected (N, ...) with N = {x[1]} of bottom 0")
        for index in range(2 + self.static, len(shapes)):
            self._expect(shapes, index, (1, x[1], self.size), "(1, N, num_output)")

    def _expect(self, shapes: Sequence[Sequence[int]], index: int, shape: Shape, meaning: str) -> None:
        if tuple(shapes[index]) != shape:
            raise self.spec.fail(f"bottom {index} has shape {list(shapes[index])}; expected {list(shape)}: {meaning}")

    def _add_blobs(self, inputs: Sequence[int]) -> None:
        """Declares the blobs for the flattened sizes of x and, if there is one, the static input."""
        message, rows = self.spec.message.recurrent_param, self.gates * self.size
        self.add_blob("weight_x", (rows, inputs[0]), message.weight_filler)
        self.add_blob("bias", (rows,), message.bias_filler)
        if self.static:
            self.add_blob("weight_static", (rows, inputs[1]), message.weight_filler)
        self.add_blob("weight_h", (rows, self.size), message.weight_filler)

    def carried(self) -> dict[str, Tensor]:
        return {} if self.exposed else {name: getattr(self, name) for name in self.hidden}

    def forward(self, *bottoms: Tensor) -> Any:
        self._check([bottom.shape for bottom in bottoms])
        products = self._products(*bottoms)
        streams = products.shape[1]
        # h0 and c0 get no gradient, as in Caffe
        given = [bottom[0].detach() for bottom in bottoms[2 + self.static :]]
        outputs, state = self._unroll(products, bottoms[1][..., None].to(products), given or self._last(streams))
        # no gradient across calls, as in Caffe
        state = [tensor.detach() for tensor in state]
        if self.exposed:
            return (self.output(outputs), *(tensor[None] for tensor in state))
        for name, tensor in zip(self.hidden, state, strict=True):
            # in place: snapshots and graphs know the buffers
            getattr(self, name)[:streams].copy_(tensor)
        return self.output(outputs)

    def _products(self, x: Tensor, _: Tensor, static: Tensor | None = None, *hidden: Tensor) -> Tensor:
        """What the inputs add to z (T, N, gates * H), all steps at once."""
        # one product for all steps; only the hidden part has to go step by step
        products = F.linear(x.reshape(*x.shape[:2], self.inputs), self.weight_blob("weight_x"), self.blob("bias"))
        if self.static and static is not None:
            weight = self.weight_blob("weight_static")
            products = products + F.linear(static.reshape(len(static), weight.shape[1]), weight)
        return products

    def _last(self, streams: int) -> list[Tensor]:
        """Copies of the carried state: the buffers are overwritten before backward reads these."""
        for buffer in self.carried().values():
            if len(buffer) < streams:
                buffer.resize_(streams, self.size).zero_()
        return [buffer[:streams].clone() for buffer in self.carried().values()]

    def _unroll(self, products: Tensor, cont: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """h of every step (T, N, H) and the last hidden state."""
        weight, before, outputs = self.weight_blob("weight_h"), list[Tensor](), []
        products = apply(_LateWeight, products, weight, before)
        # its gradient comes from _LateWeight, in one piece
        weight = weight.detach().t()
        for z, keep in zip(products.unbind(), cont.unbind(), strict=True):
            # ahead of the product: cont cuts what the weight sees, not what it makes
            previous = state[0] * keep
            before.append(previous.detach())
            state = self.step(torch.addmm(z, previous, weight), keep, state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def step(self, z: Tensor, cont: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The hidden state after one step of which z (N, gates * H) are the summed products."""
        raise AssertionError("each recurrent layer defines its own")

    def output(self, h: Tensor) -> Tensor:
        """The layer's top from h of all steps (T, N, H)."""
        return h


@layer("LSTM", "recurrent_param")
class LSTM(_Recurrent):
    """c = cont sig(f) c + sig(i) tanh(g), h = sig(o) tanh(c), z = W_x x + b + W_h (cont h) [+ W_static static].

    z (4H) stacks the gates i, f, o, g. Blobs: weight_x (4H, D), bias (4H), [weight_static (4H, Ds)],
    weight_h (4H, H). The top is h.
    """

    bottoms = (2, 5)
    tops = (1, 3)
    hidden = ("h", "c")
    gates = 4

    def step(self, z: Tensor, cont: Tensor, state: list[Tensor]) -> list[Tensor]:
        c, h = apply(_Unit, state[1], z, cont)
        return [h, c]


@layer("RNN", "recurrent_param")
class RNN(_Recurrent):
    """h = tanh(W_x x + b + W_h (cont h) [+ W_static static]); the top is tanh(W_o h + b_o).

    Blobs: weight_x (H, D), bias (H), [weight_static (H, Ds)], weight_h (H, H), weight_o (H, H), bias_o (H).
    """

    bottoms = (2, 4)
    tops = (1, 2)
    hidden = ("h",)
    gates = 1

    def _add_blobs(self, inputs: Sequence[int]) -> None:
        super()._add_blobs(inputs)
        message = self.spec.message.recurrent_param
        self.add_blob("weight_o", (self.size, self.size), message.weight_filler)
        self.add_blob("bias_o", (self.size,), message.bias_filler)

    def step(self, z: Tensor, cont: Tensor, state: list[Tensor]) -> list[Tensor]:
        return [z.tanh()]

    def output(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight_blob("weight_o"), self.blob("bias_o")).tanh()


@layer("LSTMUnit")
class LSTMUnit(Layer):
    """One step of LSTM: bottoms c (1, N, H), z (1, N, 4H) and cont (1, N), tops the next c and h."""

    bottoms = (3, 3)
    tops = (2, 2)
    labels = frozenset({2})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self._check(shapes)
        self.out_shapes = (shapes[0], shapes[0])

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        c, z, cont = (tuple(shape) for shape in shapes)
        if len(c) != 3 or c[0] != 1 or z != (1, c[1], 4 * c[2]) or cont != (1, c[1]):
            raise self.spec.fail(
                f"has bottoms {list(c)}, {list(z)}, {list(cont)}; expected c [1, N, H], z [1, N, 4H] and cont [1, N]"
            )

    def forward(self, c: Tensor, z: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        self._check([c.shape, z.shape, cont.shape])
        return apply(_Unit, c, z, cont[..., None].to(z))
