"""In which form each convolution of a net runs: as its net says, all in one, or by what each takes here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.layers.sparse import DENSE, Sparse, available
from forcereg.layers.weighted import Convolution
from forcereg.net.module import Net
from forcereg.net.sparse import Execution, convolutions, form_of, share_left
from forcereg.registry import sparse_form
from forcereg.schema.spec import LayerSpec
from forcereg.study.latency import interleaved, resized
from forcereg.system.events import Tell

AUTO = "auto"
SECONDS = 0.5
"""Time for the rounds of one layer."""
GAIN = 0.95
"""Of a dense convolution's time: what a form must stay below to be taken, as noise does not."""


def check_form(name: str) -> None:
    """Raises UsageError unless it is "auto", "dense" or a form's name."""
    known = [AUTO, DENSE, *sparse_form]
    if name not in known:
        hint = did_you_mean(name, known) or f"; expected {', '.join(known)}"
        raise UsageError(f"unknown sparse form '{name}'{hint}")


def execute(net: Net, form: str | None, tell: Tell | None = None) -> list[Execution]:
    """Has all convolutions run in one form, or each in the fastest ("auto"); None leaves what the net says.

    A layer that a form can't run stays dense, which its `note` says. Raises UsageError for an unknown name,
    ForceregError for a form whose package is missing. Empty for None if no layer says anything.
    """
    layers = convolutions(net)
    if form is None:
        said = any(module.sparse is not None for _, module in layers)
        return [Execution(spec.name, form_of(module), share_left(module)) for spec, module in layers if said]
    check_form(form)
    if form == AUTO:
        return [_fastest(net, spec, module, tell or Tell()) for spec, module in layers]
    if form != DENSE and (missing := available(form)):
        raise ForceregError(f"{form} {missing}")
    return [_forced(spec, module, form) for spec, module in layers]


def _forced(spec: LayerSpec, module: Convolution, form: str) -> Execution:
    why = "" if form == DENSE else sparse_form.get(form).refusal(module.weight_blob(), module.geometry)
    module.run_as(DENSE if why else form)
    return Execution(spec.name, form_of(module), share_left(module), note=f"{form}: {why}" if why else "")


def _fastest(net: Net, spec: LayerSpec, module: Convolution, tell: Tell) -> Execution:
    share = share_left(module)
    forms = forms_for(module)
    ms: dict[str, float] = {}
    if share < 1 and forms:
        tell.note(f"measuring {spec.name}, dense and as {', '.join(forms)}")
        ms = measured(module, [DENSE, *forms], [fed(net, bottom) for bottom in spec.bottoms])
    best = min(ms, key=lambda one: ms[one] * (GAIN if one == DENSE else 1), default=DENSE)
    module.run_as(best)
    return Execution(spec.name, best, share, ms)


def forms_for(module: Convolution) -> list[str]:
    """The sparse forms that can run a layer here."""
    weight, geometry = module.weight_blob(), module.geometry
    return [one for one in sparse_form if not (available(one) or sparse_form.get(one).refusal(weight, geometry))]


def fed(net: Net, blob: str, batch: int | None = None) -> Tensor:
    """Something of a blob's shape, with so many items if given, in the memory layout in which layers hand it on."""
    like = next(net.parameters())
    x = torch.rand(resized(net.shapes[blob], batch), device=like.device, dtype=like.dtype)
    given = blob in net.inputs or any(blob in spec.tops for spec, _ in net.built if not spec.bottoms)
    on_cpu = x.device.type == "cpu" and x.dim() == 4
    return x.contiguous(memory_format=torch.channels_last) if on_cpu and not given else x


def measured(module: Convolution, forms: Sequence[str], bottoms: Sequence[Tensor]) -> dict[str, float]:
    """Milliseconds of a layer's forward pass in each form, medians of rounds in which all take turns."""
    kept = [None if form == DENSE else Sparse(form) for form in forms]
    runs: list[Callable[[], Any]] = [partial(_ran, module, one, bottoms) for one in kept]
    before = module.sparse
    try:
        times = interleaved(runs, bottoms[0].device, SECONDS)
    finally:
        module.sparse = before
    return {form: median(own) for form, own in zip(forms, times, strict=True)}


def _ran(module: Convolution, sparse: Sparse | None, bottoms: Sequence[Tensor]) -> Any:
    module.sparse = sparse
    return module(*bottoms)
