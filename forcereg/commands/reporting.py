"""The page of `forcereg report`, which other commands write about what they leave, too."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click


def report_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--report, of commands that leave something to report on."""
    return click.option(
        "--report", metavar="FILE.html", type=click.Path(), help="Also write a page about it, as `forcereg report`."
    )(function)


def ready(out: str | None) -> None:
    """Raises ForceregError for a page that couldn't be written, before the work that it is about."""
    if out is None:
        return
    from forcereg.report.page import check_name
    from forcereg.report.plot import figure_type
    from forcereg.system.files import check_writable

    check_name(out)
    check_writable(out)
    figure_type()


def write(runs: Sequence[Any], out: str, **keywords: Any) -> list[str]:
    """Writes the page; what it lacks, and where it is, a line each."""
    from forcereg.workflows.report import report_on

    found = report_on(runs, **keywords)
    found.write(out, by=f"forcereg {shlex.join(sys.argv[1:])}")
    return [*(f"left out: {line}" for line in found.left), f"wrote {out}"]
