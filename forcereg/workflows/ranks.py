"""`forcereg ranks`: the rank that each layer needs at several errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forcereg.errors import check_share
from forcereg.lowrank.decompose import Named, Picked
from forcereg.lowrank.factor import rank_text
from forcereg.report.ranks import RankTable, rank_table
from forcereg.study.opened import Opened, Opening, nothing
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath

ERRORS = (0.01, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class RankReport:
    """The rank that each layer needs at several errors, and what the net would cost.

    `report`: plain data, what `forcereg ranks --json` prints. `table`: the same as objects. `skipped`: layer name ->
    why it can't be decomposed.

    >>> found = forcereg.ranks("net_iter_20.caffemodel.h5", error=[0], fc=True)
    >>> found.table.ranks, dict(found.skipped)
    (((8,), (16,), (3,)), {})
    """

    table: RankTable
    opened: Opened

    def __repr__(self) -> str:
        layers = zip(self.table.layers, self.table.ranks, strict=True)
        found = (f"{one.name} {'/'.join(map(rank_text, ranks))}" for one, ranks in layers)
        return f"RankReport({', '.join(found)})"

    @property
    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**self.table.report(), "phase": self.opened.accounts.phase}

    @property
    def skipped(self) -> Mapping[str, str]:
        """See the class."""
        return self.opened.prepared.skipped


@checked
def ranks(
    snapshot: StrPath | Any,
    *,
    error: Sequence[float] = ERRORS,
    method: str = "pca",
    layers: Picked | str | None = None,
    except_layers: Named | str = (),
    model: StrPath | None = None,
    fold_bn: bool = False,
    fc: bool = False,
    multiple: int = 1,
    data: StrPath | None = None,
    data_aware: int | None = None,
    seed: int = 0,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> RankReport:
    """The cheapest rank of every layer whose relative squared error is at most each of `error`, numbers from 0 to 1.

    The other arguments are those of `forcereg.decompose`. Nothing is written. Raises UsageError for what doesn't go
    together, ForceregError for files that can't be read or don't fit, and for a net without a layer to decompose.

    >>> found = forcereg.ranks("net_iter_20.caffemodel.h5", error=[0, 0.99])
    >>> [(layer["name"], layer["ranks"]) for layer in found.report["layers"]]
    [('conv1', [8, 1]), ('conv2', [16, 1])]
    """
    # before anything is read
    for bound in error:
        check_share("the error bound", bound)
    tell = Tell(observer)
    asked = Opening(
        model=model, method=method, layers=layers, except_layers=except_layers, fc=fc, multiple=multiple,
        fold_bn=fold_bn, data_aware=data_aware, seed=seed, solver=data, device=device, data_budget=data_budget,
        workers=workers, allow_python_layers=allow_python_layers, input_shapes=input_shapes or {}, tell=tell,
    )  # fmt: skip
    opened = asked.open(snapshot)
    prepared = opened.prepared
    if not prepared.candidates:
        raise nothing(snapshot, prepared.file, prepared.skipped)
    watched = prepared.watched(tell.steps("layer", len(prepared.candidates)))
    table = rank_table(watched.candidates, error, opened.whole)
    # the layers unwatched: whoever keeps the result doesn't keep the observer with it
    return RankReport(replace(table, layers=prepared.candidates), opened)
