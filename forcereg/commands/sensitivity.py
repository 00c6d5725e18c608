"""forcereg sensitivity"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.lowrank_options import LayerOptions, layer_options, nothing
from forcereg.errors import UsageError
from forcereg.system.terminal import echo

KINDS = ("png", "svg", "pdf")
ERRORS = "0.01,0.02,0.05,0.1,0.2,0.4"


@click.command(epilog="\b\nExample: forcereg sensitivity net_iter_10000.caffemodel.h5 --solver S -o sensitivity.png")
@click.argument("snapshot", metavar="SNAPSHOT", type=click.Path())
@click.option("--error", default=ERRORS, show_default=True, metavar="A,B,..",
              help="Bounds on the layer's relative squared error.")  # fmt: skip
@click.option("--out", "-o", metavar="OUT.png|svg|pdf", type=click.Path(path_type=Path),
              help="Picture, beside which OUT.csv is written.")  # fmt: skip
@layer_options
def command(snapshot: str, error: str, out: Path | None, layers: LayerOptions) -> None:
    """Show the net's accuracy with each layer decomposed alone, at several errors: which layers bear it?

    SNAPSHOT: a .caffemodel, also as .h5, or its solver state. Every net is scored on the test net of --solver, without
    fine-tuning. Writes a CSV file, and beside it what was scored, so that nothing is scored twice.
    """
    from forcereg.commands.lowrank_files import default_prefix
    from forcereg.commands.ranks import bounds
    from forcereg.lowrank.accuracy import sensitivity
    from forcereg.lowrank.factor import rank_text
    from forcereg.report.plot import figure_type
    from forcereg.report.progress import Steps
    from forcereg.report.sensitivity import as_csv, picture, table
    from forcereg.system.files import write_bytes, write_text

    errors = bounds(error)
    kind = None if out is None else picture_kind(out)
    if kind:
        figure_type()  # without matplotlib it ends here, not after the scores
    prefix = out.with_suffix("") if out else default_prefix(snapshot, "sensitivity")
    scores = Path(f"{prefix}.scores.json")
    evaluator = layers.evaluator(scores)
    opened = layers.open(snapshot)
    candidates = opened.prepared.candidates
    if not candidates:
        raise nothing(snapshot, opened.prepared.file, opened.prepared.skipped)
    points = []
    with Steps("net", 1 + len(candidates) * len(errors)) as steps:
        accuracy = evaluator.accuracy(opened.prepared, opened.model.layers)
        for point in sensitivity(candidates, errors, accuracy, opened.whole):
            points.append(point)
            which = f"{point.layer} at rank {rank_text(point.rank)}" if point.layer else "whole net"
            steps.done(f"{which}: accuracy {point.accuracy:.4f}")
    echo(f"accuracy (rank) with one layer decomposed; the whole net's is {points[0].accuracy:.2%}")
    table(points).show()
    if opened.costed:
        echo(opened.costed)
    for name, reason in opened.prepared.skipped.items():
        echo(f"can't be decomposed: {name}: {reason}")
    write_text(f"{prefix}.csv", as_csv(points))
    if out and kind:
        write_bytes(out, picture(points, kind))
    echo(f"wrote {f'{out} and ' if out else ''}{prefix}.csv; {evaluator.runs} nets scored, the others were known")


def picture_kind(out: Path) -> str:
    """What is drawn for a file of this name. Raises UsageError for an ending that can't be."""
    kind = out.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise UsageError(f"--out is '{out}'; expected a name that ends in {', '.join(f'.{one}' for one in KINDS)}")
    return kind
