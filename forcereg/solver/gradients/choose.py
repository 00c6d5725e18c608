"""Which scheme a solver's processes average their gradients by."""

from __future__ import annotations

from forcereg.errors import UsageError
from forcereg.registry import gradient_scheme
from forcereg.solver.gradients.base import DENSE, Settings, Wire
from forcereg.solver.loop import Solver


def average_by(solver: Solver, name: str, settings: Settings | None = None) -> None:
    """Has the ranks of a solver's group average their gradients by the scheme `name` from the next iteration on.

    Snapshots hold what the scheme needs to go on exactly. Tells what users should know of it. One process alone has
    nothing to average, and trains as it always does. Raises ForceregError for an unknown scheme, and for settings that
    don't fit the net.
    """
    kind = gradient_scheme.get(name)
    if solver.group.size == 1:
        if name != DENSE:
            solver.emit("note", text=f"One process alone sends no gradients: they aren't {name}")
        return
    scheme = kind(name, settings or Settings(), Wire(), solver.seed)
    if solver.scale is not None and not scheme.overflows:
        raise UsageError(
            f"gradients are {name} and amp is fp16, whose steps that overflow spoil what {name} keeps; use bf16"
        )
    solver.passes.average_by(None if name == DENSE else scheme)
    for text in scheme.remarks(solver.net, solver.param):
        solver.emit("note", text=f"Gradients between {solver.group.size} processes are {name}: {text}")
