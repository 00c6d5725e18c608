"""`forcereg lr-find`: a learning rate range test."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from forcereg.errors import UsageError
from forcereg.schema.rules import stage_names
from forcereg.schema.settings import settings_of, with_settings
from forcereg.solver.start import read
from forcereg.study.lr_range import LrCurve, range_test
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath, listed

FEWEST = 10
"""Iterations; a curve of fewer says nothing."""


@checked
def lr_find(
    solver: Any,
    *,
    weights: StrPath | Sequence[StrPath] | None = None,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    iterations: int = 100,
    level: int | None = None,
    stage: str | Sequence[str] = (),
    set: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    amp: str | None = None,
    observer: Observer | None = None,
) -> LrCurve:
    """Finds rates at which a solver learns: its loss over `iterations` at rates that grow from `min_lr` to `max_lr`.

    Each iteration is one of the solver's, with its type, momentum, decay and force, from its first weights or the
    models `weights`, but for tests, displays and snapshots: nothing is written. It ends where the smoothed loss is four
    times its least one, or isn't finite. The other keywords are those of `forcereg.train`. Raises UsageError for rates
    or iterations that make no range, ForceregError for anything wrong in solver, nets, data or weights.

    >>> found = forcereg.lr_find("solver.prototxt", max_lr=1e4, iterations=50, seed=1)
    >>> 0.01 < found.suggestion < 1, len(found.losses) < 50, found.ended
    (True, True, 'the loss diverges at rate ..., iteration ... of 50')
    """
    if not 0 < min_lr < max_lr < math.inf:
        raise UsageError(f"min_lr is {min_lr:g} and max_lr {max_lr:g}; expected two rates above 0, the lower one first")
    if iterations < FEWEST:
        raise UsageError(f"iterations is {iterations}; a range test needs {FEWEST} or more, better 100")
    own = {} if seed is None else {"random_seed": seed}
    file = with_settings(read(solver), [*settings_of(set), *settings_of(own)])
    if weights is not None:  # or the solver would load its own first
        del file.message.weights[:]
    options = {"device": device, "level": level, "stages": stage_names(stage), "workers": workers, "amp": amp}
    options |= {"budget": data_budget << 20, "allow_python_layers": allow_python_layers}
    models = [] if weights is None else [os.fspath(path) for path in listed(weights)]
    return range_test(file, models, float(min_lr), float(max_lr), iterations, Tell(observer), **options)
