"""forcereg lr-find"""

from __future__ import annotations

import json
from typing import Any

import click

from forcereg.commands.options import code_options, data_options, device_options, names_in, one_device
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg lr-find --solver configs/examples/mnist/lenet_solver.prototxt -o lr.svg")
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--weights", metavar="A,B", type=click.Path(), help="Start from these models (comma separated).")
@click.option(
    "--min-lr", type=float, default=1e-6, show_default=True, metavar="RATE", help="Rate of the first iteration."
)
@click.option(
    "--max-lr", type=float, default=10.0, show_default=True, metavar="RATE", help="Rate of the last iteration."
)
@click.option("--iterations", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
              help="How many, each at the same factor above the rate before.")  # fmt: skip
@click.option("--level", type=int, help="Level of the training net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the training net's state, comma separated.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set a field of the solver; repeatable.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The same as --set random_seed=N.")
@click.option("--out", "-o", metavar="OUT.png|svg|pdf", type=click.Path(), help="Picture of the curve.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the whole curve.")
@device_options
@click.option("--amp", type=click.Choice(["bf16", "fp16"]), help="Train in mixed precision, as train's.")
@data_options
@code_options
def command(
    solver: str, weights: str | None, settings: tuple[str, ...], out: str | None, as_json: bool, gpu: str | None,
    device: str | None, **options: Any,
) -> None:  # fmt: skip
    """Find a learning rate: train for some iterations at growing rates and look where the loss falls (a range test).

    Each iteration is one of the solver's, from its first weights or --weights. The test ends where the loss, smoothed,
    is four times its least; nothing is saved but the picture. Told are the rate of the steepest fall and a tenth of the
    rate with the least loss.
    """
    from forcereg.report.plot import figure_type, picture_kind
    from forcereg.report.progress import Shown
    from forcereg.workflows.lr_find import lr_find

    if out is not None:  # before anything runs
        picture_kind(out)
        figure_type()
    models = None if weights is None else names_in(weights)
    with Shown() as observer:
        found = lr_find(
            solver, weights=models, set=settings, device=one_device(gpu, device), observer=observer, **options
        )
    if out is not None:
        found.write(out)
    if as_json:
        echo(json.dumps(found.report))
        return
    echo(*found.lines())
    if out is not None:
        echo(f"wrote {out}")
