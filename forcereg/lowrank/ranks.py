"""How much of each layer to keep: a criterion gives every chosen layer the arguments of its decomposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forcereg.errors import UsageError

Criterion = Callable[[Sequence[str]], dict[str, dict[str, Any]]]
"""Layer names in file order -> name -> `rank` or `error` of the decomposition method."""


def by_error(error: float) -> Criterion:
    """Every layer the smallest rank whose relative squared error is at most `error`, in [0, 1]."""
    if not 0 <= error <= 1:
        raise UsageError(f"the error bound is {error:g}; expected 0 to 1")
    return lambda names: {name: {"error": error} for name in names}


def by_list(ranks: Sequence[int]) -> Criterion:
    """One given total rank per layer, in file order. The criterion raises UsageError if the counts differ."""

    def choose(names: Sequence[str]) -> dict[str, dict[str, Any]]:
        if len(ranks) != len(names):
            listed = ", ".join(names) or "none"
            raise UsageError(f"{len(ranks)} ranks given; the net has {len(names)} layers to decompose: {listed}")
        return {name: {"rank": rank} for name, rank in zip(names, ranks, strict=True)}

    return choose
