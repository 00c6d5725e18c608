"""forcereg frontier"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from forcereg.commands.frontier_options import Aims, aim_options, labels_of, opened_nets
from forcereg.commands.lowrank_options import LayerOptions, layer_options
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    import torch

    from forcereg.lowrank.ranks import Choice
    from forcereg.lowrank.rules import Rule
    from forcereg.study.frontier import Made, Point, Subject
    from forcereg.study.latency import Run
    from forcereg.study.opened import Opened

PACE = 0.5
"""Seconds of measuring for each net, so that many nets have as many rounds as few."""

tell = partial(echo, err=True)


@click.command(
    epilog="\b\nExample: forcereg frontier none.caffemodel.h5 force.caffemodel.h5 --solver S --finetune 1000 -o out.png"
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, type=click.Path())
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf", type=click.Path(path_type=Path),
              help="Picture; OUT.csv is written beside it.")  # fmt: skip
@aim_options
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train each net further, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--labels", metavar="A,B,..", help="Names of the nets.  [default: what their paths differ in]")
@click.option("--latency", "where", metavar="cpu|cuda|no", default="cpu", show_default=True,
              help="Where to measure the nets' forward pass.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
              help="Images in a measured batch.")  # fmt: skip
@layer_options
def command(
    snapshots: tuple[str, ...],
    out: Path,
    aims: Aims,
    finetune: int,
    labels: str | None,
    where: str,
    batch: int,
    layers: LayerOptions,
) -> None:
    """Compare nets by the accuracy that they keep at a cost, in MACs and in measured time.

    Every SNAPSHOT (a .caffemodel, also as .h5, or its solver state) is decomposed to each aim given, by each method of
    --method A,B,.., and scored on the test net of --solver, before and after fine-tuning. Writes the picture and a CSV
    file, and beside them what was scored and tuned, so that nothing is done twice.
    """
    from forcereg.report.plot import figure_type, picture_kind
    from forcereg.study.frontier import Subject, Target, frontier, planned
    from forcereg.study.frontier_report import as_csv, picture, table
    from forcereg.study.latency import measuring_device
    from forcereg.system.files import make_folder, write_bytes, write_text

    kind, names, rules = picture_kind(out), labels_of(snapshots, labels), aims.rules()
    figure_type()  # without matplotlib it ends here, not after the scores
    device = None if where == "no" else measuring_device(where)
    prefix = out.with_suffix("")
    make_folder(out.parent)
    evaluator = layers.opening().evaluator(Path(f"{prefix}.scores.json"))
    opened = opened_nets(snapshots, names, layers, tell)
    subjects = [Subject(*key, one.prepared, one.weights, one.accounts.cost) for key, one in opened.items()]
    choose = partial(chosen, opened, aims.even_if_dearer)
    plan = planned(subjects, [Target(text, partial(choose, rule)) for text, rule in rules.items()], tell)
    made = shown(frontier(plan, evaluator, finetune, Path(f"{prefix}.tuned"), tell), len(plan))
    points, how = measured(made, opened, device, batch)
    table(points, finetune).show()
    write_text(f"{prefix}.csv", as_csv(points, remarks(how, finetune)))
    write_bytes(out, picture(points, kind, how))
    echo(f"wrote {out} and {prefix}.csv; {evaluator.runs} nets scored, the others were known")


def chosen(
    opened: Mapping[tuple[str, str], Opened], even_if_dearer: bool, rule: Rule, subject: Subject
) -> Mapping[str, Choice]:
    """The ranks of a subject by a rule."""
    from forcereg.lowrank.rules import criterion_of
    from forcereg.study.judged import Judged
    from forcereg.study.opened import Opening

    judged = Judged(opened[subject.name, subject.method], Opening())
    return criterion_of(rule, judged, even_if_dearer)(subject.prepared.candidates)


def shown(nets: Iterable[Made], count: int) -> list[Made]:
    """All nets, what each came to told as soon as it is made."""
    from forcereg.report.progress import Steps

    made = []
    with Steps("net", count) as steps:
        for one in nets:
            made.append(one)
            point = one.point
            name = " ".join(part for part in (point.net, point.method, point.target) if part)
            tuned = "" if point.tuned is None else f", fine-tuned {point.tuned:.4f}"
            steps.done(f"{name}: accuracy {point.accuracy:.4f}{tuned}")
    return made


# -- times


def measured(
    made: Sequence[Made], opened: Mapping[tuple[str, str], Opened], device: torch.device | None, batch: int
) -> tuple[list[Point], str]:
    """The points with each net's time, and how it was taken; without for no device.

    Where nets can't run by themselves, that is told.
    """
    from forcereg.errors import ForceregError
    from forcereg.report.latency import device_text

    points = [one.point for one in made]
    if device is None:
        return points, ""
    try:
        times = latencies(made, {name: one for (name, _), one in opened.items()}, device, batch)
    except ForceregError as error:
        tell(f"not measured: {error}")
        return points, ""
    timed = [replace(point, milliseconds=time) for point, time in zip(points, times, strict=True)]
    return timed, f"batch {batch} on {device_text(device)}"


def latencies(made: Sequence[Made], opened: Mapping[str, Opened], device: torch.device, batch: int) -> list[float]:
    """Milliseconds of each net, all taking turns; nets of one structure are one. Raises ForceregError."""
    from forcereg.study.latency import fed_shapes, interleaved, net_run

    runs: dict[str, Run] = {}
    keys = []
    for one in made:
        own = opened[one.point.net].accounts
        fed = fed_shapes(one.net, own.fed or {}, batch)
        keys.append(f"{fed} {one.net.message}")
        if keys[-1] not in runs:
            runs[keys[-1]] = net_run(one.net, one.weights, fed, device, own.allow_python_layers)
    tell(f"measuring {len(runs)} nets on {device}")
    times = interleaved(list(runs.values()), device, PACE * (len(runs) + 8))
    medians = dict(zip(runs, map(median, times), strict=True))
    return [medians[key] for key in keys]


def remarks(how: str, finetune: int) -> list[str]:
    """How the figures came about: command, versions, machine and date."""
    import datetime
    import platform
    import shlex

    import torch

    from forcereg.version import __version__

    versions = f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return [
        f"forcereg {shlex.join(sys.argv[1:])}",
        f"{versions}, {platform.machine()}, {datetime.date.today()}",
        f"times: {f'{how}, medians' if how else 'not measured'}; fine-tuned for {finetune} iterations",
    ]
