"""forcereg decompose"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.latency_options import LatencyOptions, latency_options
from forcereg.commands.lowrank_files import default_prefix, format_option, write_net
from forcereg.commands.lowrank_options import LayerOptions, Opened, layer_options, nothing
from forcereg.commands.lowrank_rules import RankOptions, rank_options
from forcereg.errors import ForceregError, UsageError
from forcereg.system.terminal import echo

DEARER = "--even-if-dearer decomposes layers whose chain costs no less, too"

if TYPE_CHECKING:
    from forcereg.lowrank.decompose import Decomposition
    from forcereg.schema.text import NetFile
    from forcereg.snapshot import ModelFile
    from forcereg.study.moments import TrainingData


@click.command(epilog="\b\nExample: forcereg decompose --snapshot net_iter_10000.caffemodel.h5 --error 0.05")
@click.option("--snapshot", required=True, metavar="FILE", type=click.Path(),
              help="A .caffemodel, also as .h5, or its solver state.")  # fmt: skip
@rank_options
@latency_options
@layer_options
@click.option("--recalibrate", type=click.IntRange(min=1), metavar="N",
              help="Recompute BatchNorm's statistics on N training batches of --solver.")  # fmt: skip
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_lowrank beside it]")
@format_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    snapshot: str,
    ranks: RankOptions,
    latency: LatencyOptions,
    layers: LayerOptions,
    recalibrate: int | None,
    out: str | None,
    form: str | None,
    as_json: bool,
) -> None:
    """Replace layers by chains of smaller ones, at ranks by exactly one rule.

    \b
    pca, svd  fewer filters, then a 1x1 convolution that combines them (the paper's; svd: its factors balanced)
    kmeans    the same with filters that several outputs share
    vh        vertical kh x 1 filters, then horizontal 1 x kw ones
    tucker2   1x1 to fewer channels, the kernel between fewer channels, 1x1 back
    cp        1x1, then kh x 1 and 1 x kw for each channel alone, then 1x1

    Writes PREFIX.prototxt and PREFIX.caffemodel, or .caffemodel.h5, which `forcereg finetune` or `train --weights`
    trains further.
    """
    from forcereg.lowrank.ranks import Dearer
    from forcereg.report.lowrank import net_report, remarks, show
    from forcereg.report.progress import PAUSE, Steps
    from forcereg.schema.text import net_from_message

    rule, device, data = ranks.rule(layers), latency.device(), training_data(layers, recalibrate)
    prefix = Path(out) if out else default_prefix(snapshot)
    opened = layers.open(snapshot, ranks.config, Path(f"{prefix}.scores.json"))
    file, candidates = opened.prepared.file, opened.prepared.candidates
    if not candidates:
        raise nothing(snapshot, file, opened.prepared.skipped)
    if data is not None:
        check_norms(opened, data)
    criterion = rule(opened)
    timed = None if device is None else latency.choose(device, opened, criterion, ranks)
    choices = timed.choices if timed is not None else None
    if choices is None and ranks.max_accuracy_drop is not None:
        choices = criterion(candidates)  # which shows its own progress
    with Steps("step", 2 * len(candidates), PAUSE) as steps:
        watched = opened.prepared.watched(steps.done)
        choices = criterion(watched.candidates) if choices is None else choices
        result = watched.apply(choices)
    dearer = any(isinstance(choice, Dearer) for choice in choices.values())
    if not result.layers:
        raise nothing(snapshot, file, result.skipped, DEARER if dearer else "")
    if data is not None:
        from forcereg.study.recalibrate import recalibrate as anew

        result = anew(result, opened.prepared, opened.model.layers, choices, data)
    made_file = net_from_message(result.net, f"{prefix}.prototxt")
    net = net_report(opened.whole, opened.accounts.cost(made_file, result.weights))
    train_net = training_report(opened, made_file)
    measured = None if timed is None or device is None else latency.measured(device, opened, timed, result)
    made = {"forcereg_decomposed": json.dumps(provenance(result, opened.model))}
    written = write_net(prefix, result.net, result.weights, opened.model, layers.model, heading(result), made, form)
    if as_json:
        more: dict[str, Any] = {"net": net, "phase": opened.accounts.phase, "train_net": train_net}
        more |= {"remarks": remarks(result, net), "folded": opened.prepared.folded}
        more |= {} if measured is None else {"latency": measured.report()}
        more |= {} if data is None else {"recalibrated": {"batches": data.batches, "layers": norms(result.net)}}
        echo(json.dumps({**result.report(), **more, **written}))
        return
    show(result, net, train_net)
    if measured is not None:
        measured.show()
    if dearer:
        echo(DEARER)
    if data is not None:
        echo(f"recomputed the statistics of {', '.join(norms(result.net))} on {data.batches} training batches")
    tell(opened)
    echo(f"wrote {written['model']} and {written['weights']}")


def training_data(layers: LayerOptions, batches: int | None) -> TrainingData | None:
    """What --recalibrate runs on. Raises UsageError without --solver."""
    if batches is None:
        return None
    if layers.solver is None:
        raise UsageError("--recalibrate needs --solver FILE, whose training batches BatchNorm's statistics are of")
    return layers.training_data(batches, layers.seed)


def check_norms(opened: Opened, data: TrainingData) -> None:
    """Raises ForceregError for a net without BatchNorm or training data, before anything takes time."""
    if not norms(opened.prepared.file.message):
        why = "is left after --fold-bn" if opened.prepared.folded else "is in the net"
        raise ForceregError(f"{opened.prepared.file.name}: no BatchNorm {why}; leave out --recalibrate")
    data.source(opened.prepared.file)


def norms(net: Any) -> list[str]:
    """The BatchNorm layers of a NetParameter."""
    return list(dict.fromkeys(layer.name for layer in net.layer if layer.type == "BatchNorm"))


def training_report(opened: Opened, made: NetFile) -> dict[str, Any] | None:
    """The TRAIN net's cost before and after, where it differs from the TEST net's."""
    from forcereg.report.lowrank import net_report

    before, after = opened.in_training, opened.accounts.in_training(made)
    return None if before is None or after is None else net_report(before, after)


def tell(opened: Opened) -> None:
    """Print what isn't known of the net, what costs are of, and what was folded."""
    for line in filter(None, (opened.unknown, opened.costed)):
        echo(line)
    for name, gone in opened.prepared.folded.items():
        echo(f"folded into {name}: {', '.join(gone)}")


def heading(result: Decomposition) -> str:
    """What was done, for the comment that opens the net written."""
    from forcereg.report.lowrank import shown

    parts = (f"{one.name} {shown(one.ranks)} of {shown(one.full_ranks)} ({one.method})" for one in result.layers)
    ranks = ", ".join(parts)
    return f"decomposed by forcereg; ranks: {ranks}"


def provenance(result: Decomposition, source: ModelFile) -> list[dict[str, Any]]:
    """How the weights were made: one entry for every decomposition of theirs, the last one last."""
    from forcereg.system.sidefiles import of_form, parse_json
    from forcereg.version import __version__

    try:
        before = of_form(parse_json(source.attrs.get("forcereg_decomposed", "[]")), list[dict[str, Any]])
    except ValueError:
        before = []
    keys = ("name", "method", "full_rank", "rank", "ranks", "widths", "error")
    layers = [{key: getattr(layer, key) for key in keys} for layer in result.layers]
    return [*before, {"snapshot": source.path.name, "version": __version__, "layers": layers}]
