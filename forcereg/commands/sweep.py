"""forcereg sweep"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.lowrank_options import choice_keywords, choice_options
from forcereg.commands.lowrank_rules import RankOptions, rank_options
from forcereg.commands.options import (
    code_options,
    data_options,
    device_options,
    devices_in,
    jobs_options,
    names_in,
    start_options,
)
from forcereg.commands.reporting import ready, report_option, write
from forcereg.errors import ForceregError
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.system.events import Event


@click.command(
    epilog="\b\nExample: forcereg sweep --solver S --set force_decay=0,1e-4 --seeds 2 --max-macs 0.3 --finetune 500"
)
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--set", "sets", multiple=True, required=True, metavar="FIELD=A,B,...",
              help="A solver field and the values to try; commas inside [] separate nothing; repeatable.")  # fmt: skip
@start_options
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each setting.")
@rank_options
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train each net on, cut and whole, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--teacher", metavar="FILE", type=click.Path(),
              help="With --finetune: learn from this snapshot's net as well, as finetune does.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="sweep", show_default=True,
              help="Folder of the results; run again with it to go on.")  # fmt: skip
@report_option
@jobs_options
@choice_options
@device_options
@data_options
@code_options
def command(
    solver: str,
    sets: tuple[str, ...],
    max_iter: int | None,
    weights: str,
    seeds: int,
    ranks: RankOptions,
    finetune: int,
    teacher: str | None,
    out: Path,
    report: str | None,
    jobs: int,
    executor: str,
    resource: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a grid of settings, cut every net to low rank, fine-tune it, and compare accuracy, rank and cost.

    All nets are cut by one rule: --max-macs compares them at equal cost. Without a rule they are cut at the --error of
    each layer (0.05), at which their ranks are told in any case. Each is fine-tuned whole, too, as long and by the same
    rate: what the cut one has gained beyond that is the cut's.

    Writes a folder for each run, results.csv and sweep.svg. What was done before is not done again, so more values or
    seeds can be added; rules and --finetune can be changed without training anew. A run whose loss isn't finite doesn't
    end the others. Calls at once on one --out, on several machines, share the work; so do --jobs. What a killed one
    leaves is taken up from its newest snapshot. All scores are of the first test net, on the same records.
    """
    from forcereg.report.plot import figure_type
    from forcereg.study.sweep_report import table
    from forcereg.workflows.sweep import ERROR, sweep

    figure_type()  # without matplotlib it ends here, not after hours
    ready(report)
    device = devices_in(options)
    layers = {**choice_keywords(options), "device": device}
    error = ranks.values["error"]
    others = [name for name in ranks.given if name != "error"]
    # beside another rule --error only says at which error ranks are told
    rule = replace(ranks, values={**ranks.values, "error": None}).rule() if others else None
    found = sweep(
        solver, set=sets, rule=rule, error=ERROR if error is None else error, seeds=seeds, max_iter=max_iter,
        weights=names_in(weights), finetune=finetune, teacher=teacher, out=out, even_if_dearer=ranks.even_if_dearer,
        jobs=jobs, executor=executor, resource=resource,
        observer=tell, **layers,
    )  # fmt: skip
    table(found.results, found.plan).show()
    echo(f"wrote {found.csv} and {found.picture}")
    if report:
        echo(*write([found.csv], report))
    # behind what could be shown, as an error, for the exit code
    if found.failed:
        raise ForceregError(f"{found.failed} of {len(found.results)} runs failed; {found.csv} says why")


def tell(event: Event) -> None:
    """Prints how it goes to stderr."""
    if event.kind in ("note", "warning"):
        echo(f"warning: {event.text}" if event.kind == "warning" else event.text, err=True)
