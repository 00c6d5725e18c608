"""Looking for what would go wrong in a run: `forcereg check`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from forcereg.schema.rules import stage_names
from forcereg.study.check import Options, Report, check_file
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath


@checked
def check(
    path: StrPath,
    *,
    records: int = 1000,
    level: int | None = None,
    stage: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_python_layers: bool = False,
) -> Report:
    """Everything that would go wrong in a run of a solver, or with a net in either phase, without running it.

    Looks at paths, layers and shapes, the first `records` of each data source and their labels, weights, the schedule,
    room for snapshots, and memory. `level`, `stage`: of the training net's state, None for the solver's.
    `input_shapes`: blob -> shape, of data layers' tops, whose sources are then not opened. The result has `.errors`, at
    which a run would stop, `.warnings`, both lists of lines, and `.facts`, name -> text. Nothing is raised for a bad
    file, not even for one that isn't there: that is an error found.

    >>> found = forcereg.check("solver.prototxt")
    >>> found.errors
    []
    >>> forcereg.check("examples/mnist/lenet_force_solver.prototxt").errors[0]
    "...lenet_train_test_force.prototxt:...: layer 'mnist': ..."
    """
    options = Options(records, input_shapes or {}, level, stage_names(stage), allow_python_layers)
    return check_file(os.fspath(path), options)
