"""A model as torch.fx traces it, as flows of channels: what each of its steps does to them."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from forcereg.errors import ForceregError, printable
from forcereg.net.shrink.flows import Blocks, Flow, Joined, Mixing, Node, Together, Values
from forcereg.net.shrink.places import constant
from forcereg.net.shrink.windows import seen_everywhere
from forcereg.nn.fold import shared
from forcereg.nn.kinds import CONVS, KINDS, filters, groups_of, is_transposed, oddity
from forcereg.nn.trace import NORMS, dims_of, plainly

ACTIVATIONS: tuple[Any, ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
SPATIAL: tuple[Any, ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
FUNCTIONS = frozenset({
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "dropout", "clone", "contiguous", "abs", "neg", "clamp",
})  # fmt: skip
"""Of one tensor, by the names of functions and methods: value by value."""
POOLS = frozenset({"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"})
PAIRS = frozenset({"add", "add_", "iadd", "sub", "isub", "mul", "mul_", "imul", "truediv", "maximum", "minimum"})


@dataclass
class Graph:
    """Flows in the order of the model's steps, over blobs of `sizes` channels, of which `pinned` stay whole.

    `layers`: name of a module whose weights can be cut -> its flow, the blob that it reads and the one it writes.
    `lengths`: its input's spatial sizes. `whole`: name -> why it can't be.
    """

    nodes: list[Node] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    layers: dict[str, tuple[Flow, int, int]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)

    def blob(self, size: int) -> int:
        """A new one."""
        self.sizes.append(size)
        return len(self.sizes) - 1


def graph_of(model: nn.Module, example: Any) -> Graph:
    """The flows of a model, which is run on the example in its test phase. Raises ForceregError if it can't be traced.

    Channels are axis 1 of what convolutions give, and the last axis of what Linear layers give.
    """
    with plainly(model):
        try:
            traced = fx.symbolic_trace(model)
            run = _Run(traced)
            run.run(*arguments(model, example))
        except Exception as error:  # whatever the model's own code raises
            why = printable(str(error)).split("\\n")[0][:200]
            raise ForceregError(
                f"{type(model).__name__} can't be followed by torch.fx: {type(error).__name__}: {why}; "
                "its branches must not hang on values"
            ) from error
        return _Reader(model, traced, run.changed).read()


def arguments(model: nn.Module, example: Any) -> list[Any]:
    """The example as the model's positional arguments."""
    if isinstance(example, Mapping):
        bound = inspect.signature(model.forward).bind(**example)
        bound.apply_defaults()
        return list(bound.arguments.values())
    return list(example) if isinstance(example, tuple | list) else [example]


class _Run(fx.Interpreter):
    """Notes the shape of what each step gives. `changed`: steps whose tensor others read behind a change in place."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.changed: set[fx.Node] = set()
        self._versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        # a view's is its tensor's
        self.changed |= {one for one in n.all_input_nodes if self._versions.get(one) != _version(self.env[one])}
        found = super().run_node(n)
        n.meta["shape"] = tuple(found.shape) if isinstance(found, Tensor) else None
        self._versions[n] = _version(found)
        return found


def _version(value: Any) -> int:
    """How often a tensor was changed in place, 0 of other things."""
    return int(value._version) if isinstance(value, Tensor) else 0


class _Reader:
    """Goes through the steps, with the blob and the channels' axis of what each gives; None: of no known form."""

    def __init__(self, model: nn.Module, traced: fx.GraphModule, changed: set[fx.Node]) -> None:
        self.model, self.steps, self.changed = model, list(traced.graph.nodes), changed
        self.modules = dict(model.named_modules())
        self.calls = Counter(step.target for step in self.steps if step.op == "call_module")
        self.reached = {str(step.target).rpartition(".")[0] for step in self.steps if step.op == "get_attr"}
        users = shared(model)
        self.sharing = {name for names in users.values() for name in names}
        self.graph = Graph()
        self.given: dict[fx.Node, tuple[int, int]] = {}
        self.rigid: dict[tuple[fx.Node, int], int] = {}

    def read(self) -> Graph:
        for step in self.steps:
            if not (step.op in ("call_module", "call_function", "call_method") and self._known(step)):
                self._as_it_is(step)
        return self.graph

    # -- blobs

    def _read(self, step: fx.Node, axis: int) -> int | None:
        """The blob that a step gave, with channels along an axis; None if they are along another."""
        if step in self.given:
            return self.given[step][0] if self.given[step][1] == axis else None
        # of what nothing is known of all stays, along whichever axis
        if (step, axis) not in self.rigid:
            self.rigid[step, axis] = self.graph.blob(step.meta["shape"][axis])
            self.graph.pinned.add(self.rigid[step, axis])
        return self.rigid[step, axis]

    def _give(self, step: fx.Node, axis: int, flow: Flow, bottoms: Sequence[int]) -> int:
        blob = self.graph.blob(step.meta["shape"][axis])
        if step in self.changed:
            # what is read of it may be something else
            self.graph.pinned.add(blob)
        else:
            self.given[step] = blob, axis
        self.graph.nodes.append(Node(flow, tuple(bottoms), (blob,)))
        return blob

    def _as_it_is(self, step: fx.Node) -> None:
        """Whatever it does: all that it reads stays."""
        for one in step.all_input_nodes:
            if one in self.given and not form_only(step, one, self.given[one][1]):
                self.graph.pinned.add(self.given[one][0])

    # -- steps

    def _known(self, step: fx.Node) -> bool:
        """Whether it was understood."""
        inputs = step.all_input_nodes
        shapes = [step.meta["shape"], *(one.meta["shape"] for one in inputs)]
        if not inputs or any(shape is None or len(shape) < 2 for shape in shapes):
            # a size may be among them: of a view
            return _name(step) in ("view", "reshape") and self._flattened(step)
        if step.op == "call_module":
            return self._module(step, self.modules[str(step.target)])
        name = _name(step)
        if name in FUNCTIONS and len(inputs) == 1:
            return self._alone(step, self._function(step))
        if name in POOLS and len(inputs) == 1:
            return self._alone(step, self._function(step), axis=1)
        if name in PAIRS and len(inputs) <= 2:
            return self._alone(step, self._function(step))
        if name == "mean" and len(inputs) == 1:
            return self._mean(step)
        if name in ("cat", "concat"):
            return self._joined(step)
        return name in ("flatten", "view", "reshape") and self._flattened(step)

    def _module(self, step: fx.Node, module: Any) -> bool:
        if type(module) in ACTIVATIONS:
            return self._alone(step, module)
        if type(module) in SPATIAL:
            return self._alone(step, module, axis=1)
        if type(module) is nn.Flatten:
            return self._flattened(step)
        if type(module) not in (*KINDS, *NORMS, nn.PReLU):
            return False
        if reason := self._reason(str(step.target), module):
            self.graph.whole[str(step.target)] = reason
            return False
        return self._weighted(step, module) if type(module) in KINDS else self._alone(step, module, axis=1, cut=True)

    def _reason(self, name: str, module: Any) -> str:
        """Why a layer's weights stay as they are; '' if they can be cut."""
        if self.calls[name] > 1:
            return "it is called several times"
        if name in self.sharing:
            return "it shares a parameter"
        if name in self.reached:
            return "other code reads its parameters"
        if type(module) in KINDS:
            return oddity(module).replace("a chain", "it")
        if type(module) in NORMS and module.running_mean is None:
            return "it keeps no statistics"
        return "it has hooks" if module._forward_hooks or module._forward_pre_hooks else ""

    def _weighted(self, step: fx.Node, module: Any) -> bool:
        (bottom,) = step.all_input_nodes
        rank = len(bottom.meta["shape"])
        is_conv = type(module) in CONVS
        axis = 1 if is_conv else rank - 1
        # without a batch axis channels lie elsewhere
        blob = None if is_conv and rank != dims_of(module) + 2 else self._read(bottom, axis)
        if blob is None:
            self.graph.whole[str(step.target)] = "its input has channels along another axis"
            return False
        flow = mixing(module)
        top = self._give(step, axis, flow, [blob])
        self.graph.layers[str(step.target)] = flow, blob, top
        return True

    def _alone(self, step: fx.Node, call: Callable[..., Any], axis: int | None = None, cut: bool = False) -> bool:
        """Channel by channel, of one tensor or of several of one number of them. `cut`: its weights go with them."""
        inputs = step.all_input_nodes
        axes = {self.given[one][1] for one in inputs if one in self.given} or {1 if axis is None else axis}
        found = axes.pop()
        shapes = [one.meta["shape"] for one in inputs]
        sizes = {(len(shape), shape[found]) for shape in (*shapes, step.meta["shape"]) if len(shape) > found}
        if axes or len(sizes) > 1 or (axis is not None and found != axis):
            return False
        blobs = [self._read(one, found) for one in inputs]
        flow = Together(partial(computed, call, shapes, found))
        top = self._give(step, found, flow, [blob for blob in blobs if blob is not None])
        if cut:
            self.graph.layers[str(step.target)] = flow, top, top
        return True

    def _function(self, step: fx.Node) -> Callable[..., Any]:
        """The step as a function of the tensors that it reads."""

        def call(*tensors: Tensor) -> Any:
            found = dict(zip(step.all_input_nodes, tensors, strict=True))
            args, named = fx.node.map_arg((step.args, step.kwargs), lambda one: found[one])
            if step.op == "call_method":
                return getattr(args[0], str(step.target))(*args[1:], **named)
            return step.target(*args, **named)  # type: ignore[operator]

        return call

    def _mean(self, step: fx.Node) -> bool:
        (bottom,) = step.all_input_nodes
        rest = [one for one in (*step.args[1:], *step.kwargs.values()) if not isinstance(one, bool)]
        dims = [rest[0]] if rest and isinstance(rest[0], int) else list(rest[0]) if rest else []  # type: ignore[arg-type]
        rank = len(bottom.meta["shape"])
        if not dims or any(not isinstance(one, int) or one % rank < 2 for one in dims):
            return False
        blob = self._read(bottom, 1)
        if blob is None:
            return False
        self._give(step, 1, Together(partial(computed, self._function(step), [bottom.meta["shape"]], 1)), [blob])
        return True

    def _joined(self, step: fx.Node) -> bool:
        inputs = list(step.args[0]) if step.args and isinstance(step.args[0], tuple | list) else []
        dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else 0)
        axes = {self.given[one][1] for one in inputs if one in self.given}
        axis = axes.pop() if len(axes) == 1 else 1
        if axes or not isinstance(dim, int) or dim % len(step.meta["shape"]) != axis:
            return False
        self._give(
            step, axis, Joined(every=True), [blob for one in inputs if (blob := self._read(one, axis)) is not None]
        )
        return True

    def _flattened(self, step: fx.Node) -> bool:
        """From axis 1 on as one."""
        bottom = step.all_input_nodes[0]
        before, after = bottom.meta["shape"], step.meta["shape"]
        is_view = _name(step) in ("view", "reshape")
        # in figures a view would ask for the channels that were
        if before is None or len(before) < 2 or after != (before[0], prod(before[1:])):
            return False
        if is_view and not (len(step.args) == 3 and step.args[2] == -1):
            return False
        blob = self._read(bottom, 1)
        if blob is None:
            return False
        self._give(step, 1, Blocks(prod(before[2:])), [blob])
        return True


def _name(step: fx.Node) -> str:
    return str(step.target) if step.op == "call_method" else str(getattr(step.target, "__name__", ""))


def form_only(step: fx.Node, read: fx.Node, axis: int) -> bool:
    """Whether a step asks a tensor for sizes along other axes than this one alone."""
    if _name(step) == "size" and len(step.args) == 2 and isinstance(step.args[1], int):
        return step.args[1] % len(read.meta["shape"]) != axis
    is_shape = _name(step) == "size" or (step.target is getattr and step.args[1:2] == ("shape",))
    return is_shape and all(
        one.target is operator.getitem
        and isinstance(one.args[1], int)
        and one.args[1] % len(read.meta["shape"]) != axis
        for one in step.users
    )


def computed(call: Callable[..., Any], shapes: Sequence[Any], axis: int, bottoms: Sequence[Values]) -> list[Values]:
    """The constants of a call's channels, for one item of constant ones, in float64."""
    inputs = []
    for values, shape in zip(bottoms, shapes, strict=True):
        size = [1] * len(shape)
        size[axis] = shape[axis]
        inputs.append(torch.from_numpy(values).reshape(size).expand(1, *shape[1:]).clone())
    if isinstance(call, nn.Module):
        call = copy.deepcopy(call).cpu().double().eval()
    with torch.no_grad():
        found = call(*inputs)
    return [constant(found.movedim(axis, 1).numpy())]


def mixing(module: Any) -> Mixing:
    """The flow of a convolution or a Linear."""
    weight = filters(module).cpu().double().numpy()
    weight = weight.reshape(*weight.shape[:2], -1)
    inside = np.ones(weight.shape[2], bool)
    if is_transposed(module):
        inside = np.zeros(weight.shape[2], bool)
    elif type(module) in CONVS and module.padding_mode == "zeros":
        padding = module.padding
        if isinstance(padding, str):
            # "same" pads as much as a kernel reaches, at each end half of it or one more
            reach = [(size - 1) * step for size, step in zip(module.kernel_size, module.dilation, strict=True)]
            padding = [-(-one // 2) if padding == "same" else 0 for one in reach]
        inside = seen_everywhere(module.kernel_size, padding, module.dilation)
    bias = None if module.bias is None else module.bias.detach().cpu().double().numpy()
    return Mixing(weight, bias, groups_of(module), inside)
