"""Whether the force moves ranks: warned of early where it moves none, and where it has brought a layer down to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forcereg.solver.diagnostics import ERROR, Ranks
from forcereg.solver.pull import SOON
from forcereg.solver.run import Teller

LONG, LOOKS = 2000, 2
"""Iterations, and looks, in which no rank has moved until that is warned of."""


class RankWatch:
    """Looks at the ranks of forced layers at tests; in a run without, at displays, SOON iterations apart at least.

    A force that has halved a rank once isn't too small, however long ranks stay where they are then, and one of 1 has
    nowhere to go. `decay`: force_decay; one that isn't above 0 draws nothing together. `tested`: whether the run has
    tests. What it knows goes into snapshots, so that a resumed run warns where one that was never stopped would.
    """

    def __init__(self, tell: Teller, decay: float, tested: bool) -> None:
        self._tell, self._decay, self._tested = tell, decay, tested
        self._at = self._since = -1  # the last look, and the one at which ranks had last moved
        self._still = self._stalled = 0
        self._first, self._ranks, self._collapsed = dict[str, int](), dict[str, int](), dict[str, int]()

    def due(self, iteration: int, display: bool) -> bool:
        """Whether to look in front of this iteration, which feels a force; behind tests that is plain."""
        return not self._tested and display and (self._at < 0 or iteration - self._at >= SOON)

    def take(self, iteration: int, ranks: Ranks, whole: bool = True) -> None:
        """Compares ranks with those of the last look, and warns of what they tell.

        `whole`: the force neither rises nor falls; while it does, ranks that stay tell nothing of force_decay.
        """
        self._at = iteration
        found = {name: rank for name, (rank, _) in ranks.items()}
        if not whole or any(self._ranks.get(name) != rank for name, rank in found.items()):
            self._since, self._still = iteration, 0
        else:
            self._still += 1
        fallen = [name for name, rank in found.items() if rank == 1 < self._ranks.get(name, 1)]
        self._ranks.update(found)
        for name, rank in found.items():
            self._first.setdefault(name, rank)
        if self._decay > 0:
            self._warn(iteration, [name for name in fallen if name not in self._collapsed])
        self._collapsed.update(dict.fromkeys(fallen, iteration))

    def _warn(self, iteration: int, fallen: list[str]) -> None:
        decay = f"force_decay (it is {self._decay:g})"
        if fallen:
            self._tell.warn(
                f"{', '.join(fallen)} collapsed to rank 1 at {100 * ERROR:g} % error by iteration {iteration}: lower "
                f"{decay}, or let it go (force_iter, force_release)"
            )
        still = iteration - self._since
        if self._still >= LOOKS and still >= LONG and not self._stalled and not self._has_worked:
            self._stalled = iteration
            self._tell.warn(
                f"no rank has moved in {still:,} iterations: {decay} is too small for this learning rate; raise it "
                "about tenfold"
            )

    @property
    def _has_worked(self) -> bool:
        halved = any(2 * self._ranks[name] <= first for name, first in self._first.items())
        return halved or all(rank == 1 for rank in self._ranks.values())

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot keeps of it; empty before the first look."""
        if self._at < 0:
            return {}
        return {
            "at": self._at,
            "since": self._since,
            "still": self._still,
            "stalled": self._stalled,
            "first": dict(self._first),
            "ranks": dict(self._ranks),
            "collapsed": dict(self._collapsed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; begins anew with an empty one."""
        self._at, self._since = state.get("at", -1), state.get("since", -1)
        self._still, self._stalled = state.get("still", 0), state.get("stalled", 0)
        self._first, self._ranks = dict(state.get("first", {})), dict(state.get("ranks", {}))
        self._collapsed = dict(state.get("collapsed", {}))
