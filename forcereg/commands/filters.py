"""forcereg filters"""

from __future__ import annotations

import click

from forcereg.commands.telling import lines
from forcereg.system.terminal import echo


@click.command(
    epilog="\b\nExample: forcereg filters plain.caffemodel.h5 force.caffemodel.h5 --layer conv1 --basis -o basis.png"
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, type=click.Path())
@click.option("--layer", required=True, metavar="NAME", help="The layer; the rows of its weight are the filters.")
@click.option("--basis", is_flag=True, help="Their principal filters, those needed at --error framed.")
@click.option("--lda", is_flag=True, help="Where they lie, by linear discriminant analysis (needs scikit-learn).")
@click.option("--angles", is_flag=True, help="The distribution of the angles between them.")
@click.option("--error", type=float, default=0.05, show_default=True, metavar="E",
              help="For --basis: bound on the relative squared error.")  # fmt: skip
@click.option("--clusters", type=click.IntRange(min=2), default=4, show_default=True, metavar="N",
              help="For --lda of one snapshot: clusters of filters to tell apart.")  # fmt: skip
@click.option("--labels", metavar="A,B,..", help="Names of the snapshots.  [default: what their paths differ in]")
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt, for groups.  [default: the net that the snapshot holds]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --lda's clusters.")
@click.option("-o", "--out", multiple=True, required=True, metavar="FILE.png|svg|pdf|csv", type=click.Path(),
              help="Picture (needs matplotlib), or its numbers; repeatable.")  # fmt: skip
def command(
    snapshots: tuple[str, ...],
    layer: str,
    basis: bool,
    lda: bool,
    angles: bool,
    error: float,
    clusters: int,
    labels: str | None,
    model: str | None,
    seed: int,
    out: tuple[str, ...],
) -> None:
    """Draw a layer's filters in one or several snapshots, side by side: images, basis, clusters or angles.

    SNAPSHOT: a .caffemodel, also as .h5, or its solver state; also of a decomposed net, by the name that the layer had.
    Several of one run come in the order of their iterations.
    """
    from forcereg.report.plot import FILES, picture_kind
    from forcereg.workflows.filters import filters

    for path in out:
        picture_kind(path, FILES)
    found = filters(
        snapshots, layer=layer, basis=basis, lda=lda, angles=angles, error=error, clusters=clusters, labels=labels,
        model=model, seed=seed, observer=lines,
    )  # fmt: skip
    for path in out:
        found.write(path)
    echo(*found.view.lines(), f"wrote {' and '.join(out)}")
