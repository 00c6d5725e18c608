"""forcereg sweep"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from forcereg.commands.options import device_options


@click.command(
    epilog="\b\nExample: forcereg sweep --solver S --set force_decay=0,1e-4,1e-3 --set force_type=Constant,Degradation"
)
@click.option("--solver", required=True, metavar="FILE", help="Solver prototxt.")
@click.option("--set", "sets", multiple=True, required=True, metavar="FIELD=A,B,...",
              help="A solver field and the values to try; commas inside [] separate nothing; repeatable.")  # fmt: skip
@click.option("--weights", metavar="FILE", help="Start every run from this model.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each setting.")
@click.option("--error", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="Relative squared error at which the trained nets are cut.")  # fmt: skip
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train the cut nets, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="sweep", show_default=True,
              help="Folder of the results; run again with it to go on.")  # fmt: skip
@device_options
def command(
    solver: str,
    sets: tuple[str, ...],
    weights: str | None,
    seeds: int,
    error: float,
    finetune: int,
    out: Path,
    gpu: str | None,
    device: str | None,
) -> None:
    """Train a grid of settings, cut every net to low rank, fine-tune it, and compare accuracy, rank and cost.

    Writes a folder for each run, results.csv and sweep.svg; what was done before is not done again.
    """
    from rich.console import Console

    from forcereg.commands.options import asked_devices
    from forcereg.files import write_bytes, write_text
    from forcereg.report.sweep import as_csv, picture, table
    from forcereg.schema.text import read_solver
    from forcereg.sweep import Plan, grid, sweep

    start = weights and str(Path(weights).resolve())
    plan = Plan(read_solver(solver), start, error, finetune, asked_devices(gpu, device)[0])
    results = []
    for result in sweep(plan, grid(sets, seeds), out, lambda text: click.echo(text, err=True)):
        results.append(result)
        write_text(out / "results.csv", as_csv(results))
    Console(width=None if sys.stdout.isatty() else 1000).print(table(results, error, finetune))
    write_bytes(out / "sweep.svg", picture(results, "svg"))
    click.echo(f"wrote {out / 'results.csv'} and {out / 'sweep.svg'}")
