"""forcereg report"""

from __future__ import annotations

from typing import Any

import click

from forcereg.commands.lowrank_options import bounds
from forcereg.commands.options import (
    asked_devices,
    code_options,
    data_options,
    device_options,
    given_shapes,
    input_shape_option,
)
from forcereg.commands.reporting import ready, write
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg report train.log net_iter_10000.caffemodel.h5 -o report.html")
@click.argument("runs", metavar="RUN_OR_SNAPSHOT...", nargs=-1, required=True, type=click.Path())
@click.option("--out", "-o", required=True, metavar="OUT.html", type=click.Path(), help="The page.")
@click.option("--title", metavar="TEXT", help="Of the page.  [default: what it is about]")
@click.option("--error", default="0.01,0.05,0.1,0.2", show_default=True, metavar="A,B,..",
              help="Bounds on each layer's relative squared error, at which ranks are told.")  # fmt: skip
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt.  [default: the net that each snapshot holds]")  # fmt: skip
@click.option("--fc", is_flag=True, help="Ranks of InnerProduct layers, too.")
@click.option("--labels", metavar="FILE", type=click.Path(), help="Names of the classes, one a line, as synset_words.")
@click.option("--no-score", is_flag=True, help="Don't run the test net: no accuracy, no confusion matrix.")
@click.option("--passes", type=click.IntRange(min=0), default=10, show_default=True, metavar="N",
              help="Forward passes to measure; 0: none.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Items in a measured batch.")  # fmt: skip
@input_shape_option
@device_options
@data_options
@code_options
def command(
    runs: tuple[str, ...],
    out: str,
    error: str,
    no_score: bool,
    gpu: str | None,
    device: str | None,
    input_shape: tuple[str, ...],
    **options: Any,
) -> None:
    """Write a page about runs, snapshots and studies: one HTML file that needs nothing else and no network.

    RUN_OR_SNAPSHOT: a .caffemodel, also as .h5, or its solver state; a log, as train printed it or --log-json wrote it;
    results.csv of sweep or tune, or the table of frontier; or a folder that holds some of these. What isn't known is
    left out, and said.
    """
    from forcereg.report.progress import Shown

    ready(out)
    with Shown() as observer:
        said = write(
            runs, out, error=bounds(error), score=not no_score, device=asked_devices(gpu, device)[0],
            input_shapes=given_shapes(input_shape), observer=observer, **options,
        )  # fmt: skip
    echo(*said)
