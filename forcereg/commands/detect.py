"""forcereg detect"""

from __future__ import annotations

import time

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.image_options import image_options, whole_numbers
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
def command(
    input_file: str,
    output_file: str,
    model_def: str | None,
    pretrained_model: str,
    gpu: bool,
    mean_file: str | None,
    input_scale: float | None,
    raw_scale: float,
    channel_swap: str,
    crop_mode: str,
    context_pad: int,
    allow_python_layers: bool,
) -> None:
    """Score windows of images by a trained net, with the options of Caffe's detect.py.

    Underscores in options are dashes: --model_def is --model-def. OUT.csv has the columns filename, ymin, xmin, ymax,
    xmax, class0, class1, ...; any other name is HDF5: filename, window and prediction in the group df.
    """
    swap = whole_numbers("--channel-swap", channel_swap)
    from forcereg.workflows.detect import detect

    started = time.perf_counter()
    found = detect(
        input_file, output_file, pretrained_model=pretrained_model, model_def=model_def, crop_mode=crop_mode, gpu=gpu,
        mean_file=mean_file, input_scale=input_scale, raw_scale=raw_scale, channel_swap=swap, context_pad=context_pad,
        allow_python_layers=allow_python_layers,
    )  # fmt: skip
    echo(f"scored {len(found):,} windows in {time.perf_counter() - started:.2f} s; wrote {output_file}")
