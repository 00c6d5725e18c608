"""forcereg finetune"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from forcereg.commands import train
from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import names_in
from forcereg.errors import UsageError


@click.command(
    cls=CaffeCommand,
    params=[
        click.Option(["--model"], required=True, metavar="FILE", type=click.Path(),
                     help="Net prototxt that takes the place of the solver's, as decompose wrote it."),
        click.Option(["--test-model"], metavar="A,B", type=click.Path(),
                     help="Where the solver's test nets are files of their own: what takes their place."),
        click.Option(["--keep-force"], is_flag=True,
                     help="Let the solver's force act on the parts of decomposed layers too."),
        *train.command.params,
    ],
    epilog="\b\nExample: forcereg finetune --model net_lowrank.prototxt --weights net_lowrank.caffemodel.h5 --solver S",
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, /, model: str, test_model: str | None, keep_force: bool, **options: Any) -> None:
    """Train a decomposed net further, by the solver that the original was trained with.

    The solver's nets are replaced, all else holds: its rates, its length (--max-iter), its force on layers that are
    whole. On the parts of decomposed layers there is none, unless --keep-force asks for it: it would lower their ranks
    further. Snapshots go to its snapshot_prefix with _finetuned behind, so that the original's stay, unless --set
    snapshot_prefix says otherwise. With --teacher it learns from the whole net as well. Options are those of train.
    """
    from forcereg.workflows.finetune import finetune

    # the call says so too, but by its keywords' names
    if not (options["weights"] or options["snapshot"]):
        raise UsageError("--weights is missing: the model that decompose wrote beside the net; or --snapshot to go on")
    tests = names_in(test_model or "") or None
    train.run(ctx, options, partial(finetune, model=model, test_model=tests, keep_force=keep_force))
