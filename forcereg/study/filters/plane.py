"""The filters in a plane, by linear discriminant analysis."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from forcereg.errors import ForceregError, UsageError
from forcereg.report.plot import COLOURS, figure_type, plain
from forcereg.study.filters.bank import Bank
from forcereg.study.filters.view import View

EACH, MOST = 5, 64
"""Filters to one principal component that the discriminants are sought among, and the most of these."""
NOISE = 1e-9
"""Coordinates of directions that differ by less are the same."""
MARKERS = "os^Dv<>P*"
"""One less than colours, so that the eleventh class looks like no other."""


@dataclass(frozen=True)
class Plane(View):
    """Filters' directions, projected: `points` (M, 2), `snapshots` and `classes` (M,), what each is of.

    `by`: what the classes are, "snapshot" or "cluster".
    """

    layer: str
    by: str
    points: np.ndarray
    snapshots: tuple[str, ...]
    classes: tuple[str, ...]
    columns = ("snapshot", "class", "x", "y")

    @classmethod
    def of(cls, layer: str, banks: Sequence[Bank], clusters: int, seed: int) -> Plane:
        """Projects the filters, each of length 1, to where their classes are farthest apart.

        Raises UsageError for fewer filters than clusters or other sizes, ForceregError without scikit-learn.
        """
        if len(sizes := {bank.weight.flatten(1).shape[1] for bank in banks}) > 1:
            found = " and ".join(f"{size:,}" for size in sorted(sizes))
            raise UsageError(f"the filters of '{layer}' have {found} weights; only filters of one size have one plane")
        directions = [bank.directions() for bank in banks]
        if min(map(len, directions)) < 2:
            raise UsageError(f"layer '{layer}' has fewer than two filters that aren't zero: nothing to project")
        rows = torch.cat(directions).numpy()
        snapshots = [bank.label for bank, own in zip(banks, directions, strict=True) for _ in own]
        one, seed = len(banks) == 1, seed % 2**32  # scikit-learn's
        classes = clustered(rows, layer, clusters, seed) if one else snapshots
        points = discriminants(rows, classes, seed)
        return cls(layer, "cluster" if one else "snapshot", points, tuple(snapshots), tuple(classes))

    @property
    def kinds(self) -> list[str]:
        """The classes in order."""
        every = list(dict.fromkeys(self.classes))
        # cluster 10 behind cluster 9
        return sorted(every, key=lambda kind: (len(kind), kind)) if self.by == "cluster" else every

    def rows(self) -> Iterator[Sequence[Any]]:
        """Each filter's place."""
        for snapshot, kind, (x, y) in zip(self.snapshots, self.classes, self.points.tolist(), strict=True):
            yield snapshot, kind, x, y

    def lines(self) -> Iterator[str]:
        """How many filters each class has."""
        for kind in self.kinds:
            count = self.classes.count(kind)
            yield f"{kind}: {count:,} filter{'s' * (count > 1)}"

    def figure(self) -> Any:
        """A point for each filter, in the colour and shape of its class."""
        figure = figure_type()(figsize=(7, 5.5), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(self.kinds):
            x, y = self.points[np.array(self.classes) == kind].T
            look = {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}
            axes.plot(x, y, linestyle="", alpha=0.75, label=f"{plain(kind)} ({len(x):,})", **look)
        second = "second discriminant" if len(self.kinds) > 2 else "direction of most spread beside it"
        axes.set(xlabel="first discriminant", ylabel=second, title=f"directions of the filters of {plain(self.layer)}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", title=f"{self.by} (filters)")
        return figure


def clustered(rows: np.ndarray, layer: str, clusters: int, seed: int) -> list[str]:
    """Each direction's cluster by k-means, "cluster 1" the largest. Raises UsageError for more than make sense."""
    if len(rows) < 3:
        raise UsageError(f"layer '{layer}' has two filters that aren't zero: too few to find clusters of")
    if not 2 <= clusters < len(rows):
        raise UsageError(
            f"--clusters is {clusters}; expected 2 to {len(rows) - 1}, fewer than the filters of '{layer}'"
        )
    learn = scikit_learn()
    with warnings.catch_warnings():  # of too few that differ, which is said below
        warnings.simplefilter("ignore", learn.ConvergenceWarning)
        found = learn.KMeans(clusters, n_init=10, random_state=seed).fit(rows).labels_
    if (count := len(np.unique(found))) < clusters:
        different = f"has filters of only {count} different direction{'s' * (count > 1)}"
        raise UsageError(f"--clusters is {clusters}, but layer '{layer}' {different}; ask for no more clusters")
    order = np.argsort(-np.bincount(found, minlength=clusters), kind="stable")
    return [f"cluster {1 + place}" for place in np.argsort(order)[found]]


def discriminants(rows: np.ndarray, classes: Sequence[str], seed: int) -> np.ndarray:
    """(M, K) -> (M, 2): the two leading discriminants; of two classes the one that there is, and the most spread
    direction beside it.

    Among so few of the leading principal components that there are `EACH` filters to one: where filters have more
    weights than there are of them, any classes could be told apart.
    """
    learn = scikit_learn()
    if np.ptp(rows, 0).max() < NOISE:
        return np.zeros((len(rows), 2))
    few = min(max(2, min(MOST, len(rows) // EACH)), len(rows) - 1, rows.shape[1])
    principal = learn.PCA(few, random_state=seed).fit_transform(rows)
    kinds, place = np.unique(classes, return_inverse=True)
    means = np.stack([principal[place == kind].mean(0) for kind in range(len(kinds))])
    if np.abs(principal - means[place]).max() < NOISE or np.ptp(means, 0).max() < NOISE:
        # each class is one point, or all have one middle: no direction tells them apart better than the most spread
        return np.pad(principal, ((0, 0), (0, max(0, 2 - few))))[:, :2]
    axes = min(2, len(kinds) - 1, few)
    analysis = learn.LinearDiscriminantAnalysis(n_components=axes)
    found = analysis.fit(principal, classes).transform(principal)
    if found.shape[1] == 2:
        return found
    along = analysis.scalings_[:, :1] / np.linalg.norm(analysis.scalings_[:, 0])
    beside = principal - principal @ along @ along.T
    return np.hstack([found, beside @ np.linalg.svd(beside, full_matrices=False)[2][:1].T])


def scikit_learn() -> Any:
    """What is used of it. Raises ForceregError without it."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise ForceregError('--lda needs scikit-learn; install it with pip install "forcereg[lowrank]"') from None
    found = KMeans, PCA, LinearDiscriminantAnalysis, ConvergenceWarning
    return SimpleNamespace(**{one.__name__: one for one in found})
