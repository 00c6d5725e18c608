"""forcereg frontier"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.lowrank_options import LayerOptions, Opened, layer_options, nothing
from forcereg.commands.lowrank_rules import RankOptions, Rule
from forcereg.errors import UsageError

if TYPE_CHECKING:
    from forcereg.frontier import Made, Point, Subject
    from forcereg.lowrank.ranks import Choice

SHARES = "0.15,0.2,0.3,0.4,0.5,0.7"


@click.command(
    epilog="\b\nExample: forcereg frontier none.caffemodel.h5 force.caffemodel.h5 --solver S --finetune 1000 -o out.png"
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, type=click.Path())
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf", type=click.Path(path_type=Path),
              help="Picture; OUT.csv is written beside it.")  # fmt: skip
@click.option("--max-macs", metavar="A,B,..",
              help=f"Shares of the whole net's MACs to aim at.  [default without another aim: {SHARES}]")  # fmt: skip
@click.option("--max-params", metavar="A,B,..", help="Shares of its parameters.")
@click.option("--error", metavar="A,B,..", help="Bounds on each layer's relative squared error.")
@click.option(
    "--ranks", multiple=True, metavar="A,B,..", help="One rank for each layer that is decomposed; repeatable."
)
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
    max_macs: str | None,
    max_params: str | None,
    error: str | None,
    ranks: tuple[str, ...],
    finetune: int,
    labels: str | None,
    where: str,
    batch: int,
    layers: LayerOptions,
) -> None:
    """Compare nets by the accuracy that they keep at a cost, in MACs and in measured time.

    Every SNAPSHOT (a .caffemodel, also as .h5, or its solver state) is decomposed to each aim given, and with each
    method of --method A,B,..., and scored on the test net of --solver, before and after fine-tuning. Writes the
    picture and a CSV file, and beside them what was scored and tuned, so that nothing is done twice.
    """
    from forcereg.commands.sensitivity import picture_kind
    from forcereg.evaluate import make_folder
    from forcereg.files import write_bytes, write_text
    from forcereg.frontier import Subject, Target, frontier
    from forcereg.report.frontier import as_csv, picture, table
    from forcereg.report.lowrank import printer
    from forcereg.report.plot import figure_type
    from forcereg.report.progress import Steps

    kind = picture_kind(out)
    figure_type()  # without matplotlib it ends here, not after the scores
    given = {"max_macs": max_macs, "max_params": max_params, "error": error}
    asked = [(rule, part) for rule, text in given.items() if text is not None for part in parts(rule, text)]
    asked += [("ranks", one) for one in ranks]
    asked = asked or [("max_macs", one) for one in SHARES.split(",")]
    rules = {f"{rule.replace('_', ' ')} {value}": rank_rule(rule, value, layers) for rule, value in asked}
    prefix = out.with_suffix("")
    make_folder(out.parent)
    evaluator = layers.evaluator(Path(f"{prefix}.scores.json"))
    device = measured_on(where)
    opened = opened_all(snapshots, names_of(snapshots, labels), layers)
    subjects = [Subject(*key, one.prepared, one.model.layers, one.cost) for key, one in opened.items()]
    targets = [Target(text, partial(chosen, rule, opened)) for text, rule in rules.items()]
    made: list[Made] = []
    with Steps("net", len(snapshots) + len(subjects) * len(targets)) as steps:
        folder = Path(f"{prefix}.tuned")
        for one in frontier(subjects, targets, evaluator, finetune, folder, lambda text: click.echo(text, err=True)):
            made.append(one)
            found = [one.point.accuracy, one.point.tuned]
            scores = ", fine-tuned ".join(f"{value:.4f}" for value in found if value is not None)
            steps.done(f"{one.point.net} {one.point.method} {one.point.target}: accuracy {scores or 'unknown'}")
    points = [one.point for one in made] if device is None else measured(made, opened, device, batch)
    printer().print(table(points, finetune))
    write_text(f"{prefix}.csv", as_csv(points, about(device, batch, finetune)))
    write_bytes(out, picture(points, kind))
    click.echo(f"wrote {out} and {prefix}.csv")


def parts(rule: str, text: str) -> list[str]:
    """Numbers with commas. Raises UsageError for anything else."""
    option = f"--{rule.replace('_', '-')}"
    try:
        values = [(float(part), part.strip()) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is '{text}'; expected numbers with commas, as in 0.2,0.5") from None
    for value, _ in values:
        if not 0 <= value <= 1:
            raise UsageError(f"{option} has {value:g}; expected numbers from 0 to 1")
    return [part for _, part in values]


def rank_rule(rule: str, value: str, layers: LayerOptions) -> Rule:
    """A rule of the command `decompose` with one value. Raises UsageError."""
    options: dict[str, Any] = dict.fromkeys(RankOptions.__dataclass_fields__)
    options[rule] = value if rule == "ranks" else float(value)
    return RankOptions(**options).rule(layers)


def opened_all(snapshots: Sequence[str], labels: Sequence[str], layers: LayerOptions) -> dict[tuple[str, str], Opened]:
    """Every net by every method: label and method -> the net. Raises ForceregError."""
    opened: dict[tuple[str, str], Opened] = {}
    for label, snapshot in zip(labels, snapshots, strict=True):
        for method in (one.strip() for one in layers.method.split(",")):
            found = replace(layers, method=method).open(snapshot)
            if not found.prepared.candidates:
                raise nothing(snapshot, found.prepared.file, found.prepared.skipped)
            opened[label, method] = found
    return opened


def chosen(rule: Rule, opened: Mapping[tuple[str, str], Opened], subject: Subject) -> Mapping[str, Choice]:
    """The ranks of a subject by a rule."""
    return rule(opened[subject.name, subject.method])(subject.prepared.candidates)


def names_of(snapshots: Sequence[str], labels: str | None) -> list[str]:
    """The nets' names: those given, or their paths without what all have in common. Raises UsageError."""
    if labels is not None:
        names = [name.strip() for name in labels.split(",")]
        if len(names) != len(snapshots) or len(set(names)) < len(names):
            raise UsageError(f"--labels names {len(names)} nets; expected {len(snapshots)} different names")
        return names
    if len(set(snapshots)) < len(snapshots):
        raise UsageError("a SNAPSHOT is given twice")
    pieces = [Path(snapshot).resolve().parts for snapshot in snapshots]
    if len(pieces) == 1:
        return [Path(snapshots[0]).name.split(".caffemodel")[0]]
    same = {part for part in pieces[0] if all(part in own for own in pieces)}
    return ["/".join(part for part in own if part not in same).split(".caffemodel")[0] for own in pieces]


def measured_on(where: str) -> Any:
    """The device to measure on; None for `no`. Raises ForceregError."""
    from forcereg.device import choose_device, prepare

    if where == "no":
        return None
    device = choose_device(where, None, lambda text: None)
    prepare(device)
    return device


def measured(made: Sequence[Made], opened: Mapping[tuple[str, str], Opened], device: Any, batch: int) -> list[Point]:
    """The points with each net's time, all taking turns. Raises ForceregError."""
    from forcereg.frontier import timed
    from forcereg.latency import fed_shapes, interleaved, net_run
    from forcereg.load import net_shapes

    origins = {name: one for (name, _), one in opened.items()}
    runs = []
    for one in made:
        own = origins[one.point.net]
        allow = own.allow_python_layers
        shapes = net_shapes(one.net, own.model.attrs.get("forcereg_input_shapes"), own.root, allow)
        runs.append(net_run(one.net, one.weights, fed_shapes(one.net, shapes or {}, batch), device, allow))
    return timed(made, [median(times) for times in interleaved(runs, device)])


def about(device: Any, batch: int, finetune: int) -> list[str]:
    """How the figures came about: command, versions, date and machine."""
    import datetime
    import platform
    import shlex

    import torch

    from forcereg.version import __version__

    where = "" if device is None else f"; batch {batch} measured on {device}, {torch.get_num_threads()} threads"
    return [
        f"forcereg {' '.join(shlex.quote(arg) for arg in sys.argv[1:])}",
        f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {datetime.date.today()}{where}; {finetune} iterations of fine-tuning",
    ]
