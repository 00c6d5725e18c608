"""How strong a force is from one iteration to the next: it rises, holds and is let go; pure functions of the iteration.

Held to the end a force costs accuracy; let go, it costs next to nothing, and nearly all of the rank that it took away
stays away: scripts/paper/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from forcereg.errors import ForceregError


@dataclass(frozen=True)
class Course:
    """It rises from 0 over `ramp` iterations, falls to 0 over the last `release` before `end`, inf for none."""

    ramp: int = 0
    end: float = inf
    release: int = 0

    @property
    def turn(self) -> float:
        """The iteration from which on it falls."""
        return self.end - self.release

    @property
    def varies(self) -> bool:
        """Whether it is ever anything else than whole or off."""
        return bool(self.ramp or self.release)

    def level(self, iteration: int) -> float:
        """The share of the whole force at an iteration, from 0 to 1."""
        if iteration >= self.end:
            return 0.0
        # what begins to fall before it is up falls from where it stands
        risen = min(1.0, min(iteration, self.turn) / self.ramp) if self.ramp else 1.0
        return risen * min(1.0, (self.end - iteration) / self.release) if self.release else risen

    def let_go(self, iteration: int) -> Course:
        """The same with the fall beginning at this iteration, unless it has begun."""
        return replace(self, end=min(self.end, iteration + self.release))

    def news(self, iteration: int) -> str:
        """What to say at the beginning of an iteration; '' nothing."""
        if iteration == self.end:
            return "The force has ended"
        if iteration == self.turn:
            return f"The force is let go: it falls to 0 until iteration {self.end:.0f}"
        return ""


def course_of(p: Any) -> Course:
    """What a solver (`p`: SolverParameter) says."""
    return Course(p.force_ramp, inf if p.force_iter == -1 else p.force_iter, p.force_release)


def described(p: Any) -> str:
    """What a solver says, in a line; '' for a force that is whole from the first iteration to the last."""
    course = course_of(p)
    ends = course.end < inf
    parts = [
        f"rises over {p.force_ramp:,} iterations" if p.force_ramp else "",
        f"let go once all ranks at 5 % error are at most {p.force_until:g} of full" if p.force_until else "",
        f"{'at the latest ' if p.force_until else ''}ends at iteration {p.force_iter:,}" if ends else "",
        f"falls over its last {p.force_release:,}" if p.force_release else "",
    ]
    return ", ".join(part for part in parts if part)


def problems(p: Any) -> Iterator[ForceregError]:
    """What can't be; errors without the solver's name."""
    for field in ("force_ramp", "force_release"):
        if getattr(p, field) < 0:
            yield ForceregError(f"{field} is {getattr(p, field)}; expected a number of iterations, 0 for none")
    if p.HasField("force_until") and not 0 < p.force_until <= 1:
        yield ForceregError(f"force_until is {p.force_until:g}; expected a share of full ranks, above 0 and at most 1")
    if p.force_decay and p.force_until and not (p.test_interval > 0 and p.test_iter):
        yield ForceregError(
            f"force_until is {p.force_until:g}, but ranks are looked at in tests and there are none; set test_interval "
            "and test_iter"
        )
    if p.force_release > 0 and p.force_iter == -1 and not p.force_until:
        yield ForceregError(
            f"force_release is {p.force_release}, but the force never ends; set force_iter, its end, or force_until"
        )
    if p.force_iter > 0 and p.force_ramp + p.force_release > p.force_iter:
        yield ForceregError(
            f"force_ramp {p.force_ramp} and force_release {p.force_release} are more than force_iter {p.force_iter}, "
            "in which it rises and falls; raise force_iter or lower them"
        )
