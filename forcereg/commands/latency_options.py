"""--latency and --batch: ranks from measured times, for commands that choose ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def latency_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Both as arguments of their own."""
    options = (
        click.option("--latency", metavar="cpu|cuda",
                     help="Measure the layers there, take the fastest rank near the rule's (above it; below it under "
                          "a budget), and leave layers whole that no chain makes faster."),
        click.option("--batch", type=click.IntRange(min=1), metavar="N",
                     help="For --latency.  [default: the net's]"),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
