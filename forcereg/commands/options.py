"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from forcereg.errors import UsageError


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--gpu N and --device, which win over the solver's solver_mode."""
    function = click.option("--gpu", metavar="N", help="GPU to run on; the same as --device cuda:N.")(function)
    return click.option("--device", metavar="auto|cpu|cuda", help="Where to run; wins over the solver's solver_mode.")(
        function
    )


def asked_device(gpu: str | None, device: str | None) -> str | None:
    """The device that the two options name, None if neither is given. Raises UsageError for both."""
    if gpu is None:
        return device
    if device is not None:
        raise UsageError("--gpu and --device are both given; use one")
    if not gpu.isdigit():
        raise UsageError(f"--gpu is '{gpu}'; expected the number of one GPU, counted from 0")
    return f"cuda:{gpu}"


def stage_list(stages: str) -> tuple[str, ...]:
    """--stage a,b as a tuple, without empty ones."""
    return tuple(stage for stage in stages.split(",") if stage)
