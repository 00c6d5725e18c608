"""forcereg sensitivity"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.lowrank_options import LayerOptions, bounds, layer_options
from forcereg.system.terminal import echo

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
    from forcereg.net.made import default_prefix
    from forcereg.report.plot import figure_type, picture_kind
    from forcereg.report.progress import Shown
    from forcereg.report.sensitivity import table
    from forcereg.workflows.sensitivity import sensitivity

    errors = bounds(error)
    if out is not None:
        # before nets are scored, which takes long
        picture_kind(out)
        figure_type()  # without matplotlib it ends here, not after the scores
    prefix = out.with_suffix("") if out else default_prefix(snapshot, "sensitivity")
    given = layers.keywords
    solver, scores = given.pop("data"), f"{prefix}.scores.json"
    with Shown() as observer:
        found = sensitivity(snapshot, solver=solver, error=errors, scores=scores, observer=observer, **given)
    echo(f"accuracy (rank) with one layer decomposed; the whole net's is {found.points[0].accuracy:.2%}")
    table(found.points).show()
    if found.opened.costed:
        echo(found.opened.costed)
    for name, reason in found.skipped.items():
        echo(f"can't be decomposed: {name}: {reason}")
    found.write(f"{prefix}.csv", out)
    echo(f"wrote {f'{out} and ' if out else ''}{prefix}.csv; {found.runs} nets scored, the others were known")
