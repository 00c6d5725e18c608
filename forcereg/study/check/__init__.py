"""A dry run before a long one: everything that can be known to go wrong, without training anything."""

from __future__ import annotations

import re
from pathlib import Path

from forcereg.schema.text import MOST_BINARY, read_net, read_solver
from forcereg.study.check.nets import check_both_phases
from forcereg.study.check.report import Options, Report
from forcereg.study.check.solvers import check_solver
from forcereg.system.files import read_file

__all__ = ["Options", "Report", "check_file", "looks_like_solver"]

# by what is in it, since nets and solvers are both called .prototxt
_SOLVER_FIELD = re.compile(
    rb"^[ \t]*(net|(train|test)_net|(net|train_net|test_net)_param|base_lr|lr_policy|max_iter|solver_mode)[ \t]*[:{]",
    re.M,
)


def check_file(path: str | Path, options: Options | None = None) -> Report:
    """Checks a solver with its nets, or a net in both phases; of what can't be parsed, all the rest."""
    options = options or Options()
    report = Report(str(path))
    is_solver = report.attempt(lambda: looks_like_solver(path))
    if is_solver:
        solver = report.attempt(lambda: read_solver(path, report.error))
        if solver is not None:
            check_solver(solver, options, report)
    elif is_solver is not None:
        net = report.attempt(lambda: read_net(path, report.error))
        if net is not None:
            check_both_phases(net, options, report)
    report.name_nets()
    return report


def looks_like_solver(path: str | Path) -> bool:
    """Whether a file has a solver's fields; nets have none of them. Raises ForceregError if it can't be read."""
    try:
        return _SOLVER_FIELD.search(read_file(path, MOST_BINARY)) is not None
    except (OSError, ValueError):
        read_net(path)  # says it better
        return False
