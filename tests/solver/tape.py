"""A simulated CUDA graph on the CPU: operations are noted while recording, and run again by replaying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

T = TypeVar("T")

WAITING = frozenset((
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_consecutive",
    "unique_dim", "_unique2",
))  # fmt: skip
"""Operations whose result, or its size, the host reads from the device."""
MOVING = frozenset(("lift_fresh", "resize_", "resize_as_", "set_"))
"""Operations that bring a value from the host (torch.tensor), or new memory for a tensor that is kept."""


class Tape:
    """Records as CUDA does: what would wait for the device raises, and nothing happens to any tensor until the replay.

    Memory that is only a graph's own is filled with NaN behind the recording and every replay, as another graph of
    the pool might. `ran`, `recorded` and `replayed` count; `lengths` are the operations of each recording.
    """

    def __init__(self) -> None:
        self.ran = self.recorded = self.replayed = 0
        self.lengths: list[int] = []

    def run(self, work: Callable[[], T]) -> T:
        """Runs `work`."""
        self.ran += 1
        return work()

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """See forcereg.system.capture.Recorder."""
        recording = _Recording()
        random = torch.get_rng_state()
        try:
            with recording:
                result = work()
        finally:
            recording.undo()
            torch.set_rng_state(random)
        own = recording.temporary(result)
        recording.spoil()
        self.recorded += 1
        self.lengths.append(len(recording.calls))

        def replay() -> None:
            self.replayed += 1
            recording.replay()
            _fill(own)

        return replay, result


class _Recording(TorchDispatchMode):
    """The operations of a block: (function, arguments, the new tensors that it gave)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check(func, args, kwargs)
        for tensor in _written(func, args, kwargs):
            self._keep(tensor)
        result = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:
            return result
        args, kwargs = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs))
        seen = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        fresh = [tensor.detach() for tensor in _new(func, result) if _memory(tensor) not in seen]
        self._made.update({_memory(tensor): tensor for tensor in fresh})
        if fresh or next(_written(func, args, kwargs), None) is not None:  # and not a view
            self.calls.append((func, args, kwargs, fresh))
        return result

    def _keep(self, tensor: Tensor) -> None:
        if _memory(tensor) not in self._made and _memory(tensor) not in self._before:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self._before[_memory(tensor)] = (whole, whole.clone())

    def undo(self) -> None:
        """What was there before the block is again as it was."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def temporary(self, result: Any) -> list[Tensor]:
        """The block's new memory that isn't part of `result`."""
        kept = {_memory(tensor) for tensor in _tensors(result)}
        return [tensor for memory, tensor in self._made.items() if memory not in kept]

    def spoil(self) -> None:
        """Nothing of the block's results is there yet."""
        _fill(self._made.values())

    @torch.no_grad()
    def replay(self) -> None:
        """Does the operations in order, on the tensors of the recording."""
        for func, args, kwargs, fresh in self.calls:
            result = func(*args, **kwargs)
            for kept, value in zip(fresh, _new(func, result) if fresh else (), strict=True):
                kept.copy_(value)


@torch.no_grad()
def _fill(tensors: Any) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(tree) if isinstance(value, Tensor))


def _new(func: Any, result: Any) -> Iterator[Tensor]:
    """Those of a function's results that are neither views nor what it changed in place."""
    returns = func._schema.returns
    for declared, value in zip(returns, [result] if len(returns) == 1 else result or (), strict=True):
        if declared.alias_info is None:
            yield from _tensors(value)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that a function changes in place."""
    for index, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            yield from _tensors(args[index] if index < len(args) else kwargs.get(declared.name))


def _check(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    name = func._schema.name.removeprefix("aten::")
    by_mask = name in ("index", "index_put", "index_put_") and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    to_another = name == "_to_copy" and kwargs.get("device") not in (None, args[0].device)
    if name in WAITING or by_mask or name in MOVING or to_another:
        raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
