"""Options of Caffe's two tools that run a net on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from forcereg.errors import UsageError


def whole_numbers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    """What an option's "256,256" stands for. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{param.opts[0]} is '{text}'; expected whole numbers with commas between") from None


def image_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model-def, --pretrained-model, --gpu, and what makes inputs of images."""
    options = (
        click.option("--model-def", metavar="FILE", type=click.Path(), help="Net for use.  [default: our CaffeNet]"),
        click.option("--pretrained-model", required=True, metavar="FILE", type=click.Path(), help="Its weights."),
        click.option("--gpu", is_flag=True, help="Compute on the GPU."),
        click.option(
            "--mean-file", metavar="FILE.npy|binaryproto", type=click.Path(),
            help="Mean to take off, in the net's order; '' for none.  [default: ImageNet's mean colour, of 3 channels]",
        ),
        click.option("--input-scale", type=float, metavar="X", help="Multiply inputs by this in the end."),
        click.option("--raw-scale", type=float, metavar="X", default=255.0, show_default=True,
                     help="Multiply images, 0 to 1, by this before the mean is taken off."),
        click.option("--channel-swap", metavar="A,B,C", default="2,1,0", show_default=True,
                     callback=whole_numbers,
                     help="Order of the channels in the input; '' for that of images: R, G, B, or grey."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
