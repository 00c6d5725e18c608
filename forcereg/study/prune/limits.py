"""At which shares of weights that aren't zero each layer is faster than dense, by its own weights, pruned, as run here.

The model of Park et al. (ICLR 2017, section 2.3): a sparse kernel takes alpha times the time of a dense one for each
multiplication, so that it pays below a share of 1 / alpha, until its time is that of reading the data. Here both
bounds are read off a curve of measured times.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch

from forcereg.layers.sparse import DENSE
from forcereg.layers.weighted import Convolution
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec
from forcereg.schema.text import to_text
from forcereg.solver.pruning import Limit
from forcereg.solver.sparsity.pruning import kept
from forcereg.study.latency import interleaved, resized
from forcereg.study.scores import digest
from forcereg.study.sparse import GAIN, SECONDS, fed, forms_for, measured
from forcereg.system import sidefiles
from forcereg.system.events import Tell
from forcereg.system.files import write_text

SHARES = (0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Of weights that aren't 0, at which a layer is measured."""
BETTER = 1.05
"""Of the least time: what is within it gets no faster."""
Times = Mapping[str, float]
"""Form, or "dense" -> milliseconds."""


def limit_of(curve: Mapping[float, Times]) -> Limit:
    """Where pruning pays, of times by the share of weights that aren't 0.

    >>> limit_of({0.4: {"dense": 2.0, "csr": 3.0}, 0.2: {"dense": 2.0, "csr": 1.0}, 0.1: {"dense": 2.0, "csr": 0.5},
    ...           0.05: {"dense": 2.0, "csr": 0.5}})
    Limit(most=0.2, least=0.1, alpha=2.5)
    """
    # what disturbs a measurement only adds to it, and more zeros are no more work
    dense, time = min(times[DENSE] for times in curve.values()), inf
    best: dict[float, float] = {}
    for share in sorted(curve, reverse=True):
        best[share] = time = min(time, fastest(curve[share])[1] or inf)
    wins = [share for share in best if best[share] < GAIN * dense]
    if not wins:
        return Limit(None)
    most, least = max(wins), max(share for share in wins if best[share] <= BETTER * time)
    return Limit(most, least, best[most] / (most * dense))


def fastest(times: Times) -> tuple[str, float | None]:
    """The sparse form of the least time, and that; "" and None without any."""
    sparse = {form: ms for form, ms in times.items() if form != DENSE}
    form = min(sparse, key=lambda one: sparse[one], default="")
    return form, sparse.get(form)


class LayerTimes:
    """Measures layers of a net that stands for tests, on inputs of its shapes with `batch` items.

    `known`: a JSON file of curves measured before, None for none.
    """

    def __init__(self, net: Net, batch: int, tell: Tell, known: Path | None = None) -> None:
        self._net, self._batch, self._tell, self._path = net, batch, tell, known
        self._known: dict[str, Any] = sidefiles.known(known, dict[str, Any]) or {}
        self._layers = {spec.name: (spec, module) for spec, module in net.built if module is not None}

    def now(self, name: str) -> Times:
        """Milliseconds of a layer with the weights that it has."""
        spec, module = self._layers[name]
        bottoms = [fed(self._net, bottom, self._batch) for bottom in spec.bottoms]
        if isinstance(module, Convolution):
            return measured(module, [DENSE, *forms_for(module)], bottoms)
        times = interleaved([partial(module, *bottoms)], bottoms[0].device, SECONDS)
        return {DENSE: median(times[0])}

    def limit(self, name: str) -> Limit | None:
        """Where pruning a layer pays; None for one that no sparse form runs. Raises ForceregError for the file."""
        spec, module = self._layers[name]
        if not isinstance(module, Convolution) or not (forms := forms_for(module)):
            return None
        key = self._key(spec, module, forms)
        if (curve := _curve(self._known.get(key))) is None:
            self._tell.note(f"measuring {name} at {len(SHARES)} shares of its weights, dense and as {', '.join(forms)}")
            curve = self._measured(spec, module)
            if self._path is not None:
                self._known[key] = {str(share): dict(times) for share, times in curve.items()}
                write_text(self._path, json.dumps(self._known, indent=1) + "\n")
        return limit_of(curve)

    def _measured(self, spec: LayerSpec, module: Convolution) -> dict[float, Times]:
        weight = module.weight_blob().detach()
        whole, curve = weight.clone(), {}
        try:
            for share in SHARES:
                weight.copy_(whole.masked_fill(~kept(whole, round((1 - share) * whole.numel())), 0))
                curve[share] = self.now(spec.name)
        finally:
            weight.copy_(whole)
        return curve

    def _key(self, spec: LayerSpec, module: Convolution, forms: Sequence[str]) -> str:
        shapes = [list(resized(self._net.shapes[bottom], self._batch)) for bottom in spec.bottoms]
        machine = [platform.node(), platform.machine(), torch.__version__, torch.get_num_threads()]
        where = str(module.weight_blob().device)
        return digest([spec.name, to_text(spec.message.convolution_param), shapes, machine, where, list(forms), SHARES])


def _curve(value: Any) -> dict[float, Times] | None:
    """A curve as the file has it; None for what isn't one."""
    try:
        found = sidefiles.of_form(value, dict[str, dict[str, float]])
        return {float(share): times for share, times in found.items()}
    except ValueError:
        return None
