"""forcereg sweep"""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.lowrank_options import LayerOptions, choice_options
from forcereg.commands.lowrank_rules import RankOptions, flag, rank_options
from forcereg.commands.options import code_options, data_options, device_options
from forcereg.errors import ForceregError, UsageError
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forcereg.lowrank.ranks import Choice
    from forcereg.schema.text import SolverFile
    from forcereg.study.sweep_plan import Cut, Trained

ERROR = 0.05
"""Relative squared error at which ranks are told where --error says no other."""


@click.command(
    epilog="\b\nExample: forcereg sweep --solver S --set force_decay=0,1e-4 --seeds 2 --max-macs 0.3 --finetune 500"
)
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--set", "sets", multiple=True, required=True, metavar="FIELD=A,B,...",
              help="A solver field and the values to try; commas inside [] separate nothing; repeatable.")  # fmt: skip
@click.option("--max-iter", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Of every run, as train's.")
@click.option("--weights", metavar="A,B", default="", type=click.Path(),
              help="Start every run from these models (comma separated).")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each setting.")
@rank_options
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train each net on, cut and whole, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="sweep", show_default=True,
              help="Folder of the results; run again with it to go on.")  # fmt: skip
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
    out: Path,
    **options: Any,
) -> None:
    """Train a grid of settings, cut every net to low rank, fine-tune it, and compare accuracy, rank and cost.

    All nets are cut by one rule: --max-macs compares them at equal cost. Without a rule they are cut at the --error of
    each layer (0.05), at which their ranks are told in any case. Each is fine-tuned whole, too, as long and by the same
    rate: what the cut one has gained beyond that is the cut's.

    Writes a folder for each run, results.csv and sweep.svg. What was done before is not done again, so more values or
    seeds can be added; rules and --finetune can be changed without training anew. A run whose loss isn't finite doesn't
    end the others. All scores are of the first test net, on the same records.
    """
    from forcereg.report.plot import figure_type
    from forcereg.study.grid import grid
    from forcereg.study.sweep import sweep
    from forcereg.study.sweep_plan import Plan
    from forcereg.study.sweep_report import as_csv, picture, table
    from forcereg.system.files import write_bytes, write_text

    figure_type()  # without matplotlib it ends here, not after hours
    given: dict[str, Any] = {field.name: None for field in fields(LayerOptions)} | LAYERS | options
    layers = LayerOptions(**given | {"solver": solver})
    running = {
        "device": layers.on,
        "budget": layers.data_budget << 20,
        "workers": layers.workers,
        "allow_python_layers": layers.allow_python_layers,
    }
    error = ERROR if ranks.values["error"] is None else ranks.values["error"]
    cut = cut_by(ranks, error, layers)
    models = [Path(name.strip()).resolve() for name in weights.split(",") if name.strip()]
    plan = Plan(solver_of(solver, sets, max_iter), models, error, finetune, running, cut)
    results = []
    for result in sweep(plan, grid(sets, seeds), out, partial(echo, err=True)):
        results.append(result)
        write_text(out / "results.csv", as_csv(results))
    table(results, plan).show()
    write_bytes(out / "sweep.svg", picture(results, plan, "svg"))
    echo(f"wrote {out / 'results.csv'} and {out / 'sweep.svg'}")
    if failed := sum(bool(result.failed) for result in results):
        raise ForceregError(f"{failed} of {len(results)} runs failed; {out / 'results.csv'} says why")


def solver_of(path: str, sets: tuple[str, ...], max_iter: int | None) -> SolverFile:
    """The file, with the length asked for. Raises UsageError if that is among the values to try."""
    from forcereg.schema.settings import with_settings
    from forcereg.schema.text import read_solver
    from forcereg.study.grid import alternatives

    file = read_solver(path)
    if max_iter is None:
        return file
    if any(alternatives(text)[0] == "max_iter" for text in sets):
        raise UsageError("--max-iter and --set max_iter are both given; use one")
    return with_settings(file, [f"max_iter={max_iter}"])


LAYERS = {"fold_bn": False, "seed": 0, "input_shape": ()}
"""Of the options of other commands what `sweep` lacks and isn't None."""


def cut_by(ranks: RankOptions, error: float, layers: LayerOptions) -> Cut:
    """The rule that the options give, at the `error` without another. Raises UsageError, ForceregError."""
    from forcereg.lowrank.ranks import by_error
    from forcereg.lowrank.rules import criterion_of
    from forcereg.net.read import ReadNet
    from forcereg.study.judged import Judged
    from forcereg.study.opened import Opened
    from forcereg.study.sweep_plan import Cut

    by_error(error)  # its range
    given = [name for name in ranks.given if name != "error"]
    ranks = replace(ranks, values={**ranks.values, "error": None if given else error})
    rule, opening = ranks.rule(), layers.opening()  # so that what is wrong with it is told now
    rule.check(layers.method, has_data=True)

    def choose(trained: Trained) -> Mapping[str, Choice]:
        read = ReadNet(trained.model, trained.prepared.file, trained.accounts.root)
        opened = Opened(read, trained.prepared, trained.accounts)
        judged = Judged(opened, replace(opening, scorer=trained.evaluator))
        return criterion_of(rule, judged, ranks.even_if_dearer)(trained.prepared.candidates)

    asked = {name: text(ranks.values[name]) for name in ranks.given}
    asked |= {"even_if_dearer": text(True)} if ranks.even_if_dearer else {}
    name = given[0] if given else "error"
    words = " ".join([f"{flag(name)[2:]} {asked[name]}", *([] if layers.method == "pca" else [f"by {layers.method}"])])
    if ranks.values["rank_config"] is not None:
        asked["rank_config"] = hashlib.sha256(Path(ranks.values["rank_config"]).read_bytes()).hexdigest()
    for one in ("method", "fc", "only_layers", "except_layers", "multiple"):
        if (value := getattr(layers, one)) not in (None, False, 1):
            asked[one] = str(value)
    return Cut(words, asked, choose, opening.selection(rule.layers), rule.scores)


def text(value: Any) -> str:
    """Of an option, floats in short."""
    return f"{value:g}" if isinstance(value, float) else str(value)
