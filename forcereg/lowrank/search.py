"""Searches among all combinations of a method's ranks: the cheapest within an error bound, and the efficient ones.

Errors that take long are asked for only where bounds on them leave a choice open. Combinations are places in flat
arrays, in which the last rank runs fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TRIES = 16
"""Errors that a search may ask for beside those of the combinations that it has to look at."""
EFFICIENT = 256
"""Combinations that are kept of all efficient ones: a search among several layers takes about a second then."""


def cheapest(
    costs: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    bound: float,
    error: Callable[[int], float],
    first: Sequence[int] = (),
) -> int:
    """The cheapest combination found whose error is at most `bound`; one at least has an upper bound that is.

    costs, lower, upper: (m,), bounds on the errors. `first`: combinations of which the result is never dearer than
    any whose error is within the bound, provided that the errors fall along them. Of the others it tries those that
    are cheaper than the best so far and would be within the bound if their error fell as far below its upper bound
    as the last one tried did; at first at least the one with the least upper bound.
    """
    # one always is: at the full ranks the upper bound is zero
    met = np.flatnonzero(upper <= bound)
    # lexsort goes by its last key first: cost, then the bound
    best = int(met[np.lexsort((upper[met], costs[met]))[0]])
    for at in reversed(first):
        if costs[at] < costs[best]:
            if lower[at] > bound or error(at) > bound:
                break  # and so have all before it
            best = at
    tried = np.zeros(len(costs), bool)
    falls = share(error(best), upper[best])
    for _ in range(TRIES):
        left = np.flatnonzero((costs < costs[best]) & (lower <= bound) & ~tried)
        places = left[falls * upper[left] <= bound]
        if not len(places):
            if tried.any() or not len(left):
                break
            # nothing was tried yet, so how errors fall below bounds isn't known: the likeliest is
            places = left[upper[left] == upper[left].min()]
        at = int(places[np.lexsort((upper[places], costs[places]))[0]])
        found, tried[at] = error(at), True
        falls = share(found, upper[at])
        best = at if found <= bound else best
    return best


def share(found: float, most: float) -> float:
    """How far an error falls below its upper bound; 1: it doesn't."""
    return found / most if most > 0 else 1.0


def efficient(costs: np.ndarray, errors: np.ndarray, limit: int, also: Sequence[int] = ()) -> np.ndarray:
    """The combinations that cost less than `limit` and than any as good, by rising cost; and those of `also`.

    costs, errors: (m,). At most EFFICIENT without `also`, denser where they cost little.
    """
    under = np.flatnonzero(costs < limit)
    order = under[np.lexsort((errors[under], costs[under]))]
    least = np.minimum.accumulate(errors[order])
    # cut, since without combinations there is no first one either
    front = order[np.append(True, least[1:] < least[:-1])[: len(order)]]
    if len(front) > EFFICIENT:
        # square roots: steps that are equal there are small where costs are, which is where ranks matter
        roots = np.sqrt(costs[front].astype(float))
        bins = np.linspace(roots[0], roots[-1], EFFICIENT)  # the first holds the cheapest one alone
        places = np.searchsorted(bins, roots)
        # the last in each bin has the least error of it
        front = front[np.append(places[1:] != places[:-1], True)]
    kept = np.union1d(front, [at for at in also if costs[at] < limit]).astype(np.int64)
    return kept[np.lexsort((errors[kept], costs[kept]))]
