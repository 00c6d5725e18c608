"""forcereg sweep"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from forcereg.commands.options import code_options, data_options, device_options
from forcereg.errors import ForceregError, UsageError
from forcereg.terminal import echo


@click.command(
    epilog="\b\nExample: forcereg sweep --solver solver.prototxt --set force_decay=0,1e-5,1e-4 --seeds 3 --finetune 500"
)
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--set", "sets", multiple=True, required=True, metavar="FIELD=A,B,...",
              help="A solver field and the values to try; commas inside [] separate nothing; repeatable.")  # fmt: skip
@click.option("--weights", metavar="A,B", default="", type=click.Path(),
              help="Start every run from these models (comma separated).")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each setting.")
@click.option("--error", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="Relative squared error at which the trained nets are cut.")  # fmt: skip
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train the cut nets, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="sweep", show_default=True,
              help="Folder of the results; run again with it to go on.")  # fmt: skip
@device_options
@data_options
@code_options
def command(
    solver: str,
    sets: tuple[str, ...],
    weights: str,
    seeds: int,
    error: float,
    finetune: int,
    out: Path,
    gpu: str | None,
    device: str | None,
    data_budget: int,
    workers: int,
    allow_python_layers: bool,
) -> None:
    """Train a grid of settings, cut every net to low rank, fine-tune it, and compare accuracy, rank and cost.

    Writes a folder for each run, results.csv and sweep.svg. What was done before is not done again, so more values or
    seeds can be added; --error and --finetune can be changed without training anew. A run that fails, as by a loss that
    isn't finite, doesn't end the others. All scores are of the first test net, on the same records.
    """
    from forcereg.commands.options import asked_devices
    from forcereg.files import write_bytes, write_text
    from forcereg.grid import grid
    from forcereg.report.plot import figure_type
    from forcereg.report.sweep import as_csv, picture, table
    from forcereg.schema.text import read_solver
    from forcereg.sweep import Plan, sweep

    figure_type()  # without matplotlib it ends here, not after hours
    devices = asked_devices(gpu, device)
    if len(devices) > 1:
        raise UsageError("--gpu names several GPUs; a sweep runs on one, start another with other values and --out")
    options = {
        "device": devices[0],
        "budget": data_budget << 20,
        "workers": workers,
        "allow_python_layers": allow_python_layers,
    }
    models = [Path(name.strip()).resolve() for name in weights.split(",") if name.strip()]
    plan = Plan(read_solver(solver), models, error, finetune, options)
    results = []
    for result in sweep(plan, grid(sets, seeds), out, partial(echo, err=True)):
        results.append(result)
        write_text(out / "results.csv", as_csv(results))
    table(results, error, finetune).show()
    write_bytes(out / "sweep.svg", picture(results, "svg"))
    echo(f"wrote {out / 'results.csv'} and {out / 'sweep.svg'}")
    if failed := sum(bool(result.failed) for result in results):
        raise ForceregError(f"{failed} of {len(results)} runs failed; {out / 'results.csv'} says why")
