"""What a model does with an example, seen by hooks: where each layer works, and who reads what it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from forcereg.cost import Extent
from forcereg.errors import ForceregError, printable
from forcereg.nn.kinds import CONVOLUTIONS, TRANSPOSED, is_transposed

HARMLESS = {"__get__", "size", "dim", "stride", "is_contiguous", "numel", "__len__"}
"""What only looks at a tensor's form."""
NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Seen:
    """One module in a run: where it worked, its first input, and what isn't plain about how it was called."""

    extents: list[Extent] = field(default_factory=list)
    first: Tensor | None = None
    problem: str = ""


@dataclass
class Trace:
    """A run on an example. `macs`: of all products. `norms`: layer -> the BatchNorm that alone reads its output."""

    macs: int
    seen: Mapping[str, Seen]
    norms: Mapping[str, str]
    output: Any


def called(model: nn.Module, example: Any) -> Any:
    """The model's output: a tuple or list are its arguments, a mapping its keywords, all else is the one argument."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


@contextlib.contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """The model as it is used, no shortcuts that skip its modules; its training flags come back."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in training.items():
            module.training = flag


def trace(model: nn.Module, example: Any, watched: Mapping[str, nn.Module]) -> Trace:
    """Run the model, in its test phase, and look at the `watched` modules. Raises ForceregError if it doesn't run."""
    watch = _Watch(model, watched)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    handles = watch.hooks()
    try:
        with plainly(model), counter, watch:
            output = called(model, example)
    except ForceregError:
        raise
    except Exception as error:  # whatever the model's own code raises
        why = printable(str(error)).split("\\n")[0][:200]
        raise ForceregError(
            f"{type(model).__name__} doesn't run on the example: {type(error).__name__}: {why}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Trace(counter.get_total_flops() // 2, watch.seen, watch.only_norms(output), output)


class _Watch(TorchFunctionMode):
    """Hooks on modules, and a look at every torch function that is called outside of them."""

    def __init__(self, model: nn.Module, watched: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.seen = {name: Seen() for name in watched}
        self._watched = watched
        self._norms = {name: one for name, one in model.named_modules() if isinstance(one, NORMS)}
        self._weights = {id(one._parameters.get("weight")): name for name, one in watched.items()}
        self._within = 0
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # the tensor too: an id is free for others without it
        self._readers: dict[str, list[str]] = {}
        self._busy: set[str] = set()

    def hooks(self) -> list[Any]:
        found = []
        for name, module in {**self._watched, **self._norms}.items():
            found.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            found.append(module.register_forward_hook(self._leave(name), with_kwargs=True, always_call=True))
        return found

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, named: Any) -> None:
            self._within += 1
            if name in self._norms and args and id(args[0]) in self._outputs:
                self._readers.setdefault(self._outputs[id(args[0])][0], []).append(name)
            if name in self._watched:
                more = len(args) + len(named) > 1
                self.seen[name].problem = "it is called with more than its input" if more else self.seen[name].problem

        return enter

    def _leave(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, named: Any, output: Any) -> None:
            self._within -= 1
            if name in self._watched and isinstance(output, Tensor):
                x = next(iter([*args, *named.values()]))
                seen = self.seen[name]
                seen.first = x if seen.first is None else seen.first
                seen.extents.append(extent(module, x, output))
                self._outputs[id(output)] = name, output

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._within and getattr(func, "__name__", "") not in HARMLESS:
            for one in tree_leaves((args, kwargs)):
                if isinstance(one, Tensor):
                    if name := self._weights.get(id(one), ""):
                        self.seen[name].problem = "its weight is also read by other code than its own"
                    if id(one) in self._outputs:
                        self._busy.add(self._outputs[id(one)][0])
        return func(*args, **(kwargs or {}))

    def only_norms(self, output: Any) -> dict[str, str]:
        """Layer -> BatchNorm, where that one reads its output, once, and nobody else does."""
        given = {id(one) for one in tree_leaves(output) if isinstance(one, Tensor)}
        returned = {self._outputs[one][0] for one in given if one in self._outputs}
        counts = [norm for readers in self._readers.values() for norm in readers]
        return {
            name: readers[0]
            for name, readers in self._readers.items()
            if len(readers) == len(self.seen[name].extents) == counts.count(readers[0]) == 1
            and name not in self._busy | returned
        }


def extent(module: nn.Module, x: Tensor, y: Tensor) -> Extent:
    """Where a layer with filters, or a chain, worked."""
    dims = dims_of(module)
    spatial = slice(x.dim() - dims, None)
    rows = prod(x.shape[: x.dim() - dims - 1])
    transposed = any(map(is_transposed, module.modules()))
    return Extent(rows, tuple(x.shape[spatial]), tuple(y.shape[spatial]), transposed)


def dims_of(module: nn.Module) -> int:
    """Spatial axes of a convolution or of a chain of them; 0 of a Linear."""
    kinds = {**{kind: dims for dims, kind in CONVOLUTIONS.items()}, **{kind: dims for dims, kind in TRANSPOSED.items()}}
    found = [dims for one in module.modules() for kind, dims in kinds.items() if isinstance(one, kind)]
    return max(found, default=0)


def same_calls(before: Trace, after: Trace, names: Collection[str]) -> list[str]:
    """Those of `names` that worked elsewhere, or another number of times, in the second run."""
    return [name for name in names if before.seen[name].extents != after.seen[name].extents]


# -- products that torch's counter doesn't know


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    *lead, rows, width = query
    return 2 * prod(lead) * rows * key[-2] * (width + value[-1])


def _recurrent(x: Any, w0: Any, w1: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    # one direction of one layer: every step multiplies with both weights
    return 2 * x[0] * x[1] * (prod(w0) + prod(w1))


UNCOUNTED: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}
