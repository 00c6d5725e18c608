"""forcereg prune"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forcereg.commands.lowrank_options import names
from forcereg.commands.options import code_options, data_options, device_options, flag, format_option, one_device
from forcereg.errors import UsageError
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg prune --solver S --weights W --target 0.9 --over 2000 --finetune 2000")
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="The trained model, or its state.")
@click.option("--method", default="magnitude", show_default=True, metavar="magnitude|dns|l1",
              help="The smallest weights for good; or such as come back meanwhile; or what L1 makes zero.")  # fmt: skip
@click.option("--target", type=float, metavar="F", help="Share of zeros among the layers' weights, as in 0.9.")
@click.option("--max-accuracy-drop", type=float, metavar="F",
              help="Or as many as cost so much accuracy before fine-tuning, as in 0.01.")  # fmt: skip
@click.option("--spread", default="magnitude", show_default=True, metavar="magnitude|uniform|sensitivity",
              help="Zeros by magnitude over all layers, alike in each, or as each costs accuracy.")  # fmt: skip
@click.option("--over", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations over which it is pruned, by a cubic schedule; 0: at once.")  # fmt: skip
@click.option("--every", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
              help="Iterations from one step of that to the next.")  # fmt: skip
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train on under the masks.")  # fmt: skip
@click.option("--rate", type=float, metavar="F", help="Learning rate of both.  [default: a tenth of base_lr]")
@click.option("--l1", type=float, default=5e-5, show_default=True, metavar="F", help="L1's weight decay.")
@click.option("--threshold", type=float, default=1e-4, show_default=True, metavar="F",
              help="With l1: weights at rest are zeros below ten times this.")  # fmt: skip
@click.option("--guided", is_flag=True,
              help="Prune only layers that zeros make faster here, only as far, and restore the others.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Items of a forward pass that is measured.")  # fmt: skip
@click.option("--only-layers", metavar="A,B", help="Prune these layers only (names, or patterns as conv*).")
@click.option("--except-layers", metavar="A,B", help="Leave these layers as they are.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of the training.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="pruned", show_default=True,
              help="Folder of the results; run again with it to go on.")  # fmt: skip
@format_option
@device_options
@data_options
@code_options
def command(
    solver: str,
    only_layers: str | None,
    except_layers: str | None,
    gpu: str | None,
    device: str | None,
    form: str | None,
    **options: Any,
) -> None:
    """Make the smallest weights of a trained net zero for good, and train the others on under the masks.

    Tells of each layer which share of its weights is left, and what it takes dense and in its best sparse form: zeros
    alone make nothing faster. --guided measures that first, and prunes only where it pays. Writes net, weights and
    layers.csv to --out, with logs and snapshots of the training; run again it goes on.
    """
    from forcereg.report.progress import Shown
    from forcereg.study.prune.report import table
    from forcereg.workflows.prune import prune

    if (options["target"] is None) is (options["max_accuracy_drop"] is None):
        given = "neither is given" if options["target"] is None else "both are given"
        raise UsageError(f"{flag('target')} and {flag('max_accuracy_drop')} say how far: {given}; give one")
    where = one_device(gpu, device)
    only, without = names("--only-layers", only_layers), names("--except-layers", except_layers) or ()
    with Shown() as observer:
        found = prune(
            solver, layers=only, except_layers=without, device=where, format=form, observer=observer, **options
        )
    table(found.layers).show()
    told = f"accuracy {found.whole:.2%} before, {found.pruned:.2%} pruned"
    echo(told if found.tuned is None else f"{told}, {found.tuned:.2%} fine-tuned")
    echo(f"wrote {found.model}, {found.weights} and {found.csv}")
