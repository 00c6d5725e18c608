"""forcereg decompose"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forcereg.commands.options import code_options
from forcereg.errors import ForceregError, UsageError

if TYPE_CHECKING:
    from forcereg.lowrank.decompose import Decomposition, LayerReport, Totals
    from forcereg.lowrank.ranks import Criterion
    from forcereg.schema.text import NetFile
    from forcereg.snapshot import ModelFile

MODEL_END = ".caffemodel.h5"  # what is written is HDF5, whatever was read


@click.command(epilog="\b\nExample: forcereg decompose --snapshot net_iter_10000.caffemodel.h5 --error 0.05")
@click.option("--snapshot", required=True, metavar="FILE", type=click.Path(),
              help="A .caffemodel, also as .h5, or its solver state.")  # fmt: skip
@click.option("--error", type=float, metavar="E", help="Bound on each layer's relative squared error, 0 <= E <= 1.")
@click.option("--ranks", metavar="A,B,..", help="Or one rank per convolution, in the net file's order.")
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt.  [default: the net that the snapshot holds]")  # fmt: skip
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_lowrank beside it]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@code_options
def command(
    snapshot: str,
    error: float | None,
    ranks: str | None,
    model: str | None,
    out: str | None,
    as_json: bool,
    allow_python_layers: bool,
) -> None:
    """Replace every convolution by a low-rank pair: fewer filters, then a 1x1 convolution that combines them.

    Writes PREFIX.prototxt and PREFIX.caffemodel.h5, which `forcereg train --weights` trains further.
    """
    from forcereg.load import net_shapes
    from forcereg.lowrank.decompose import decompose
    from forcereg.snapshot import modern

    criterion = asked_ranks(error, ranks)
    prefix = Path(out) if out else default_prefix(snapshot)
    weights = read_weights(snapshot)
    file, root = asked_net(model, weights)
    weights = modern(weights, {layer.name: layer.type for layer in file.message.layer})
    shapes = net_shapes(file, weights.attrs.get("forcereg_input_shapes"), root, allow_python_layers)
    result = decompose(file, weights.layers, criterion, shapes)
    if not result.layers:
        reasons = "; ".join(f"{one['name']}: {one['reason']}" for one in result.report()["skipped"])
        raise ForceregError(f"{snapshot}: nothing to decompose in {file.name} ({reasons or 'it has no convolution'})")
    written = write(result, prefix, weights, model)
    if as_json:
        click.echo(json.dumps({**result.report(), **written}))
    else:
        show(result, written)
        if shapes is None and not allow_python_layers and any(layer.type == "Python" for layer in file.message.layer):
            click.echo("the net has Python layers, which run with --allow-python-layers only")


def asked_ranks(error: float | None, ranks: str | None) -> Criterion:
    """The criterion that --error or --ranks asks for. Raises UsageError unless exactly one is given."""
    from forcereg.lowrank.ranks import by_error, by_list

    if (error is None) == (ranks is None):
        raise UsageError("give exactly one of --error and --ranks")
    if error is not None:
        return by_error(error)
    try:
        return by_list([int(rank) for rank in str(ranks).split(",")])
    except ValueError:
        raise UsageError(f"--ranks is '{ranks}'; expected whole numbers with commas, as in 13,21,27") from None


def default_prefix(snapshot: str) -> Path:
    """`<snapshot stem>_lowrank` beside the snapshot."""
    path = Path(snapshot)
    name = path.name.removesuffix(".h5").removesuffix(".caffemodel").removesuffix(".solverstate")
    return path.with_name(f"{name}_lowrank")


def read_weights(snapshot: str) -> ModelFile:
    """The model file, also through a solver state's learned_net. Raises ForceregError."""
    from forcereg.paths import find_learned_net, find_root
    from forcereg.snapshot import ModelFile, read, read_model

    found = read(snapshot)
    if isinstance(found, ModelFile):
        return found
    return read_model(find_learned_net(find_root(found.learned_net, snapshot), found.learned_net, snapshot))


def asked_net(model: str | None, weights: ModelFile) -> tuple[NetFile, Path]:
    """The net of --model or of the snapshot, and the root of its relative paths. Raises ForceregError."""
    from forcereg.load import net_root
    from forcereg.schema.text import parse_net, read_net

    text = weights.attrs.get("forcereg_net")
    if model is None and text is None:
        raise ForceregError(f"{weights.path}: holds no net text (Caffe wrote it?); give it by --model net.prototxt")
    file = read_net(model) if model is not None else parse_net(str(text), f"<net in {weights.path}>")
    return file, net_root(file)


def write(result: Decomposition, prefix: Path, weights: ModelFile, model: str | None) -> dict[str, str]:
    """Write both files, the weights with the new net inside; their paths. Raises ForceregError.

    A file that was read is never overwritten.
    """
    from forcereg.files import write_text
    from forcereg.schema.text import to_text
    from forcereg.snapshot import write_model

    net_path, model_path = Path(f"{prefix}.prototxt"), Path(f"{prefix}{MODEL_END}")
    for path, source in ((model_path, weights.path), (net_path, model)):
        if source is not None and path.resolve() == Path(source).resolve():
            raise UsageError(f"--out {prefix} would overwrite {source}; choose another prefix")
    text = heading(result, weights.path) + to_text(result.net)
    write_model(model_path, result.weights, attrs={**weights.attrs, "forcereg_net": text})
    write_text(net_path, text)
    return {"model": str(net_path), "weights": str(model_path)}


def heading(result: Decomposition, source: Path) -> str:
    """A comment that opens the net written: where it came from, and the ranks."""
    ranks = ", ".join(f"{layer.name} {layer.rank} of {layer.full_rank}" for layer in result.layers)
    return f"# {source.name} decomposed by forcereg; ranks: {ranks or 'none'}\n"


def show(result: Decomposition, written: dict[str, str]) -> None:
    """Print the table, what was left whole and why, and where the files are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("layer", overflow="fold"))
    for heading in ("full rank", "rank", "error", "MACs before", "MACs after", "speed-up"):
        table.add_column(heading, justify="right", overflow="fold")
    for layer in result.layers:
        ranks = (str(layer.full_rank), str(layer.rank), f"{layer.error:.4f}")
        table.add_row(escape(layer.name), *ranks, *costs(layer))
    table.add_section()
    full, kept = (sum(getattr(layer, key) for layer in result.layers) for key in ("full_rank", "rank"))
    table.add_row("total", str(full), str(kept), "", *costs(result.totals))
    # behind a pipe rich takes 80 columns for granted, and would cut names and numbers to fit
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    for name, reason in result.skipped.items():
        click.echo(f"left whole: {name}: {reason}")
    if result.layers and result.totals.macs_before is None:
        click.echo("MACs are unknown: data that isn't here, or layers that need --allow-python-layers or --import")
    click.echo(f"wrote {written['model']} and {written['weights']}")


def costs(of: LayerReport | Totals) -> list[str]:
    """MACs before and after and the speed-up, as table cells; - for what is unknown."""
    macs = ["-" if count is None else f"{count:,}" for count in (of.macs_before, of.macs_after)]
    return [*macs, "-" if of.speedup is None else f"{of.speedup:.2f}x"]
