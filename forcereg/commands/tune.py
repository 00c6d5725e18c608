"""forcereg tune"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forcereg.commands.lowrank_options import choice_keywords, choice_options
from forcereg.commands.options import (
    code_options,
    data_options,
    device_options,
    devices_in,
    jobs_options,
    names_in,
    start_options,
)
from forcereg.errors import ForceregError
from forcereg.system.terminal import echo


@click.command(epilog='\b\nExample: forcereg tune --solver S --weights W --goal "macs<=0.5" --finetune 500 --trials 30')
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--goal", required=True, metavar="macs<=F|params<=F|drop<=D",
              help="The most accuracy at a cost, or the fewest MACs at a loss of accuracy.")  # fmt: skip
@click.option("--trials", required=True, type=click.IntRange(min=1), metavar="N",
              help="How many in all; the first is without force.")  # fmt: skip
@click.option("--choose", metavar="NAME", help="How a bound on cost is spread over the layers, as decompose's.")
@click.option("--search", multiple=True, metavar="FIELD=LOW:HIGH|A,B",
              help="A solver field and its bounds or values, as force_iter=25%:100% or base_lr=0.01; repeatable.  "
              "[default: force_decay=1e-5:1e-2, force_type=Constant,Degradation]")  # fmt: skip
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train each cut net on, without force, at a tenth of base_lr.")  # fmt: skip
@start_options
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of training and search.")
@click.option("--prune-after", type=float, default=0.3, show_default=True, metavar="F",
              help="Share of the iterations behind which bad trials are ended; 1: none.")  # fmt: skip
@click.option("--study", metavar="FILE|URL",
              help="Where the study is, for several machines to share.  [default: a file in --out]")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="tune", show_default=True,
              help="Folder of the results; run again with it to go on, or at once to share the work.")  # fmt: skip
@jobs_options
@choice_options
@device_options
@data_options
@code_options
def command(
    solver: str,
    goal: str,
    trials: int,
    choose: str | None,
    search: tuple[str, ...],
    finetune: int,
    max_iter: int | None,
    weights: str,
    seed: int,
    prune_after: float,
    study: str | None,
    out: Path,
    jobs: int,
    executor: str,
    resource: tuple[str, ...],
    **options: Any,
) -> None:
    """Search the force, and other settings, with which nets are best when cut (needs optuna).

    Each trial is trained, cut for the goal and fine-tuned. macs<=0.5 looks for the most accurate net with half of the
    MACs, params<=0.5 of the parameters, drop<=0.01 for the one with the fewest MACs whose accuracy, before fine-tuning,
    is at most a point below that of the whole net trained without force. Bad trials are ended at a test: their net, cut
    as it is then, scores below the median of the others.

    Writes a folder for each trial, results.csv, tune.svg and best_solver.prototxt. Run again, it goes on to --trials in
    all; a trial that was killed goes on from its newest snapshot. Calls at once share the work; so do --jobs.
    """
    from forcereg.report.plot import figure_type
    from forcereg.report.progress import Shown
    from forcereg.study.tune_report import table
    from forcereg.workflows.tune import tune

    figure_type()  # without matplotlib it ends here, not after hours
    device = devices_in(options)
    layers = {**choice_keywords(options), "device": device}
    with Shown() as observer:
        found = tune(
            solver, goal=goal, trials=trials, choose=choose, search=search, finetune=finetune,
            max_iter=max_iter, weights=names_in(weights), seed=seed, prune_after=prune_after, study=study, out=out,
            jobs=jobs, executor=executor, resource=resource, observer=observer, **layers,
        )  # fmt: skip
    table(found.trials, found.plan, found.goal).show()
    best = found.best
    if best is None:
        raise ForceregError(f"no trial came to its end; {found.csv} says why")
    echo(f"best: trial {best.number}; wrote {found.solver}, {found.csv} and {found.picture}")
