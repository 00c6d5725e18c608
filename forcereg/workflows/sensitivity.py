"""`forcereg sensitivity`: the net's accuracy with each layer decomposed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import check_share
from forcereg.lowrank.accuracy import Point
from forcereg.lowrank.accuracy import sensitivity as points_of
from forcereg.lowrank.decompose import Named, Picked
from forcereg.lowrank.factor import rank_text
from forcereg.report.plot import picture_kind
from forcereg.report.sensitivity import as_csv, picture
from forcereg.study.opened import Opened, Opening, nothing
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes, write_text
from forcereg.system.paths import StrPath

ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Sensitivity:
    """The net's accuracy with each layer decomposed alone, at several errors.

    `points`: the whole net, without a layer, then every layer at every error. `runs`: how many nets were scored; the
    others were known.

    >>> found = forcereg.sensitivity("net_iter_20.caffemodel.h5", solver="solver.prototxt", error=[0])
    >>> [point.drop for point in found.points], found.runs
    ([0.0, 0.0, 0.0], 3)
    """

    points: tuple[Point, ...]
    opened: Opened = field(repr=False)
    runs: int

    @property
    def skipped(self) -> Mapping[str, str]:
        """Layer name -> why it can't be decomposed."""
        return self.opened.prepared.skipped

    @checked
    def write(self, csv: StrPath, picture_file: StrPath | None = None) -> None:
        """Writes the points as CSV, and with a file's name that ends in .png, .svg or .pdf their curves.

        Raises UsageError for another ending, ForceregError without matplotlib and if the system refuses.
        """
        # drawn first: without matplotlib nothing is written
        drawn = picture_file and picture(self.points, picture_kind(Path(picture_file)))
        write_text(Path(csv), as_csv(self.points))
        if picture_file and drawn:
            write_bytes(Path(picture_file), drawn)


@checked
def sensitivity(
    snapshot: StrPath | Any,
    *,
    solver: StrPath | None,
    error: Sequence[float] = ERRORS,
    scores: StrPath | None = None,
    method: str = "pca",
    layers: Picked | str | None = None,
    except_layers: Named | str = (),
    model: StrPath | None = None,
    fold_bn: bool = False,
    fc: bool = False,
    multiple: int = 1,
    data_aware: int | None = None,
    seed: int = 0,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> Sensitivity:
    """The net's accuracy with each layer decomposed alone, at each `error`, bounds of 0 to 1 on the layer's own.

    Every net is scored on the test net of `solver`, without fine-tuning; `scores`: a JSON file that keeps what was
    scored, so that nothing is scored twice. The other arguments are those of `forcereg.decompose`. Raises UsageError
    for what doesn't go together, ForceregError for files that can't be read or don't fit, and for a net without a
    layer to decompose or without an accuracy.

    >>> found = forcereg.sensitivity("net_iter_20.caffemodel.h5", solver="solver.prototxt", error=[0.1, 0.9])
    >>> [(point.layer, point.bound) for point in found.points]
    [('', 0.0), ('conv1', 0.1), ('conv1', 0.9), ('conv2', 0.1), ('conv2', 0.9)]
    >>> found.write("sensitivity.csv")
    """
    for bound in error:
        check_share("the error bound", bound)
    tell = Tell(observer)
    asked = Opening(
        model=model, method=method, layers=layers, except_layers=except_layers, fc=fc, multiple=multiple,
        fold_bn=fold_bn, data_aware=data_aware, seed=seed, solver=solver, device=device, data_budget=data_budget,
        workers=workers, allow_python_layers=allow_python_layers, input_shapes=input_shapes or {}, tell=tell,
    )  # fmt: skip
    # first: a solver without a test net is told before weights are read
    evaluator = asked.evaluator(None if scores is None else Path(scores))
    opened = asked.open(snapshot)
    prepared = opened.prepared
    if not prepared.candidates:
        raise nothing(snapshot, prepared.file, prepared.skipped)
    step = tell.steps("net", 1 + len(prepared.candidates) * len(error))
    points = []
    for point in points_of(prepared.candidates, error, evaluator.accuracy(prepared, opened.weights), opened.whole):
        points.append(point)
        which = f"{point.layer} at rank {rank_text(point.rank)}" if point.layer else "whole net"
        step(f"{which}: accuracy {point.accuracy:.4f}")
    return Sensitivity(tuple(points), opened, evaluator.runs)
