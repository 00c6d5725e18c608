"""Second moments of what the layers of a model are multiplied with, over batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcereg.errors import ForceregError, UsageError
from forcereg.layers.convolve import Geometry
from forcereg.net.moments import Moments, rows_of, windows_of
from forcereg.nn.kinds import is_transposed
from forcereg.nn.prepare import Site
from forcereg.nn.trace import called, plainly


def input_moments(
    model: nn.Module, sites: Mapping[str, Site], data: Iterable[Any], count: int, example: Any
) -> dict[str, Tensor]:
    """Name -> E[x x^T] (groups, K, K), float64 on the CPU, over at most `count` batches; the model in its test phase.

    Raises UsageError for data without a batch, ForceregError for inputs that aren't finite or layers that don't run.
    """
    found: dict[str, Moments] = {}

    def watch(name: str, layer: Any) -> Callable[..., None]:
        def add(module: nn.Module, args: Any, named: Any) -> None:
            for rows in _inputs(layer, next(iter([*args, *named.values()]))):
                found.setdefault(name, Moments.of(rows)).add(rows)

        return add

    plain = {name: site for name, site in sites.items() if not is_transposed(site.layer)}
    handles = [
        site.module.register_forward_pre_hook(watch(name, site.layer), with_kwargs=True) for name, site in plain.items()
    ]
    number = 0
    try:
        with plainly(model):
            for batch in islice(data, count):
                called(model, arguments(batch, example, model))
                number += 1
    finally:
        for handle in handles:
            handle.remove()
    if not number:
        raise UsageError("data gives no batch; expected a loader, or a list of batches")
    for name in plain:
        if name not in found or not found[name].total.isfinite().all():
            raise ForceregError(f"layer '{name}' doesn't run on the data, or has inputs that aren't finite numbers")
    return {name: (one.total / one.count).cpu() for name, one in found.items()}


def arguments(batch: Any, example: Any, model: nn.Module) -> Any:
    """Of a batch as many first items as the example has arguments, or those of its names, on the model's device."""
    device = next((one.device for one in model.parameters()), torch.device("cpu"))

    def there(one: Any) -> Any:
        return one.to(device) if isinstance(one, Tensor) else one

    if isinstance(example, Mapping):
        if not isinstance(batch, Mapping) or not example.keys() <= batch.keys():
            raise UsageError(
                f"a batch of the data isn't a mapping with {', '.join(map(str, example))}, as the example is"
            )
        return {name: there(batch[name]) for name in example}
    if isinstance(example, tuple | list):
        return tuple(there(one) for one in batch[: len(example)])
    first = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(first, Tensor):
        raise UsageError(
            f"a batch of the data is a {type(batch).__name__}; expected a tensor, or a list that opens with one"
        )
    return there(first)


@torch.no_grad()
def _inputs(layer: Any, x: Tensor) -> Iterator[Tensor]:
    if isinstance(layer, nn.Linear):
        return rows_of(x)
    dims = len(layer.kernel_size)
    x = x if x.dim() == dims + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    geometry = Geometry(layer.kernel_size, layer.stride, (0,) * dims, layer.dilation)
    return windows_of(padded, geometry, layer.groups)
