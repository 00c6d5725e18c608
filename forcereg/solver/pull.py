"""How large the force is beside the gradient: said at tests, and warned of where it does nothing or swamps it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from forcereg.solver.diagnostics import ratios_of
from forcereg.solver.run import Teller

LEAST, MOST = 1e-4, 1.0
"""Ratios of ||force|| to ||gradient|| below and above which force_decay is hardly what was meant."""
SOON = 1000
"""Iterations in which a force may be that small."""


class Pull:
    """Measures it in the iteration behind each test; without tests at the first display and the first one past SOON.

    `decay`: force_decay, for warnings; `tested`: whether the run has tests. `last` is the ratio over all weights that
    feel a force, None before the first.
    """

    def __init__(self, tell: Teller, decay: float, tested: bool) -> None:
        self.last: float | None = None
        self._tell, self._decay, self._has_tests = tell, decay, tested
        self._begun: int | None = None
        self._most = 0.0
        self._small = self._large = False  # which warning is no longer to come

    def due(self, iteration: int, tested: bool, display: bool) -> bool:
        """Whether to measure this iteration, which feels a force; `tested`, `display`: what it has."""
        if self._begun is None:
            self._begun = iteration
        if self._has_tests:
            return tested
        return display and (self.last is None or (not self._small and iteration - self._begun >= SOON))

    def take(self, iteration: int, layers: Iterable[str], norms: Tensor) -> None:
        """Tells the observers of the norms (gradient and force, by layer) of this iteration. Reads the device."""
        rows, ratio = ratios_of(layers, norms)
        self.last, self._most = ratio, max(self._most, ratio)
        warning = self._warning(iteration, ratio)
        self._tell.emit("force", iteration=iteration, layers=rows, ratio=ratio, warned=bool(warning))
        if warning:
            self._tell.warn(f"||force|| / ||gradient|| = {ratio:.3g} at iteration {iteration}: {warning}")

    def _warning(self, iteration: int, ratio: float) -> str:
        decay = f"force_decay (it is {self._decay:g})"
        late = iteration - (self._begun or 0) >= SOON
        if late and not self._small and not math.isnan(ratio):
            self._small = True
            if self._most < LEAST:
                return f"the force has done next to nothing so far; raise {decay}"
        if ratio > MOST and not self._large:
            self._large = True
            return f"the force swamps the gradient; lower {decay}"
        return ""
