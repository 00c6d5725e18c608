"""What is done when a loss isn't finite: the run ends, or goes back to its last snapshot at a lower rate. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from forcereg.errors import UsageError

STOP, ROLLBACK = "stop", "rollback"
_ROLLBACK = re.compile(rf"{ROLLBACK}(?::(\d{{1,6}})(?::([-+.\w]+))?)?")


@dataclass(frozen=True)
class OnNan:
    """Goes back at most `times`, each time with the rate multiplied by `factor` (above 0, below 1)."""

    times: int = 3
    factor: float = 0.5

    @classmethod
    def of(cls, text: str, said: Callable[[str], str] = str) -> OnNan | None:
        """stop (None) or rollback[:N[:FACTOR]]. Raises UsageError for anything else."""
        if text == STOP:
            return None
        found = _ROLLBACK.fullmatch(text)
        try:
            times = int(found[1] or cls.times) if found else 0
            factor = float(found[2] or cls.factor) if found else 0.0
        except ValueError:
            factor = 0.0
        if times < 1 or not 0 < factor < 1:
            raise UsageError(
                f"{said('on_nan')} is '{text}'; expected stop or rollback:N:FACTOR, N from 1 on and FACTOR between 0 "
                "and 1, as in rollback:3:0.5"
            )
        return cls(times, factor)


@dataclass
class Rollbacks:
    """How often a run went back (`done`) and what its rate is multiplied by since (`factor`); what a state holds."""

    done: int = 0
    factor: float = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Nothing for a run that never went back."""
        return dict(vars(self)) if self.done else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from that."""
        fresh = Rollbacks(**state)
        self.done, self.factor = fresh.done, fresh.factor
