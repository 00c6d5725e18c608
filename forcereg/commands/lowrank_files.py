"""--format, of the weights that commands make of a snapshot's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--format, one of `net.made.FORMATS`."""
    return click.option(
        "--format", "form", type=click.Choice(["binary", "hdf5"]),
        help="Of the weights written.  [default: the snapshot's]",
    )(function)  # fmt: skip
