"""How large the force is beside the gradient: said at tests, and warned of where it does nothing or swamps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from forcereg.solver.diagnostics import ratios_of

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver

LEAST, MOST = 1e-4, 1.0
"""Ratios of ||force|| to ||gradient|| below and above which force_decay is hardly what was meant."""
SOON = 1000
"""Iterations in which a force may be that small."""


class Pull:
    """Measures it in the iteration behind each test; without tests at the first display and the first one past SOON.

    `last` is the ratio over all weights that feel a force, None before the first. The first rank alone measures.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self._begun: int | None = None
        self._most = 0.0
        self._small = self._large = False  # which warning is no longer to come

    def due(self, solver: Solver, tested: bool, display: bool) -> Callable[[Tensor], None] | None:
        """What takes this iteration's norms, None if they needn't be measured; `tested`, `display`: what it has."""
        if solver.group.rank or not solver.updater.feels(solver.iter):
            return None
        if self._begun is None:
            self._begun = solver.iter
        if solver.test_nets and solver.param.test_interval > 0:
            wanted = tested
        else:
            wanted = display and (self.last is None or (not self._small and solver.iter - self._begun >= SOON))
        return partial(self.take, solver) if wanted else None

    def take(self, solver: Solver, norms: Tensor) -> None:
        """Tells the observers of norms (gradient and force, by forced weight) of this iteration. Reads the device."""
        layers, ratio = ratios_of(solver.updater.forced, norms)
        self.last, self._most = ratio, max(self._most, ratio)
        warning = self._warning(solver, ratio)
        solver.emit("force", iteration=solver.iter, layers=layers, ratio=ratio, warned=bool(warning))
        if warning:
            solver.warn(f"||force|| / ||gradient|| = {ratio:.3g} at iteration {solver.iter}: {warning}")

    def _warning(self, solver: Solver, ratio: float) -> str:
        decay = f"force_decay (it is {solver.param.force_decay:g})"
        late = solver.iter - (self._begun or 0) >= SOON
        if late and not self._small and not math.isnan(ratio):
            self._small = True
            if self._most < LEAST:
                return f"the force has done next to nothing so far; raise {decay}"
        if ratio > MOST and not self._large:
            self._large = True
            return f"the force swamps the gradient; lower {decay}"
        return ""
