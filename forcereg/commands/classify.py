"""forcereg classify"""

from __future__ import annotations

import time
from typing import Any

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.image_options import image_options, whole_numbers
from forcereg.commands.options import code_options
from forcereg.system.terminal import echo


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg classify --model_def deploy.prototxt --pretrained_model net.caffemodel a.jpg out.npy",
)
@click.argument("input_file", metavar="IMAGE|FOLDER|FILE.npy", type=click.Path())
@click.argument("output_file", metavar="OUT.npy", type=click.Path())
@image_options
@click.option("--center-only", is_flag=True, help="Score the middle crop alone, not ten of each image.")
@click.option("--images-dim", metavar="H,W", default="256,256", show_default=True, callback=whole_numbers,
              help="Size to bring images to.")  # fmt: skip
@click.option("--ext", default="jpg", show_default=True, help="What the images of a folder end in.")
@code_options
def command(input_file: str, output_file: str, **options: Any) -> None:
    """Score images by a trained net, with the options of Caffe's classify.py.

    Underscores in options are dashes: --model_def is --model-def.
    """
    from forcereg.workflows.classify import classify, npy_name

    started = time.perf_counter()
    scores = classify(input_file, output_file, **options)
    seconds = time.perf_counter() - started
    echo(f"scored {len(scores):,} images in {seconds:.2f} s; wrote {npy_name(output_file)}: {scores.shape}")
