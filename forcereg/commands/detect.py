"""forcereg detect"""

from __future__ import annotations

import time
from typing import Any

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.image_options import image_options
from forcereg.commands.options import code_options
from forcereg.system.terminal import echo


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg detect --crop_mode list --model_def deploy.prototxt --pretrained_model net.caffemodel"
    " windows.csv scores.csv",
)
@click.argument("input_file", metavar="WINDOWS.csv|IMAGES.txt", type=click.Path())
@click.argument("output_file", metavar="OUT.csv|h5", type=click.Path())
@image_options
@click.option(
    "--crop-mode", type=click.Choice(["selective_search", "list"]), default="selective_search", show_default=True,
    help="Where windows come from: list, the columns filename, ymin, xmin, ymax, xmax of a .csv; selective_search, "
    "other people's module selective_search_ijcv_with_python, for the images named in a .txt.",
)  # fmt: skip
@click.option("--context-pad", type=int, metavar="N", default=16, show_default=True,
              help="Pixels of the input, on each side, that show what is around the window.")  # fmt: skip
@code_options
def command(input_file: str, output_file: str, **options: Any) -> None:
    """Score windows of images by a trained net, with the options of Caffe's detect.py.

    Underscores in options are dashes: --model_def is --model-def. OUT.csv has the columns filename, ymin, xmin, ymax,
    xmax, class0, class1, ...; any other name is HDF5: filename, window and prediction in the group df.
    """
    from forcereg.workflows.detect import detect

    started = time.perf_counter()
    found = detect(input_file, output_file, **options)
    echo(f"scored {len(found):,} windows in {time.perf_counter() - started:.2f} s; wrote {output_file}")
