"""forcereg confusion"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forcereg.commands.options import asked_devices, code_options, data_options, device_options, sparse_option
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.workflows.confusion import NamedConfusion


@click.command(
    epilog="\b\nExample: forcereg confusion --model train_val.prototxt --weights net.caffemodel -o confusion.png"
)
@click.option("--model", required=True, metavar="FILE", type=click.Path(), help="Net prototxt; its TEST phase is run.")
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="Model to score.")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N",
              help="Batches to run, all of them whole.  [default: all records of the set, each once]")  # fmt: skip
@click.option("--layer", metavar="NAME",
              help="Accuracy or loss whose scores and labels count.  [default: the last top-1 Accuracy]")  # fmt: skip
@click.option("--labels", metavar="FILE", type=click.Path(), help="Names of the classes, one a line, as synset_words.")
@click.option("--pairs", type=click.IntRange(min=0), default=10, show_default=True, help="Mistakes to list.")
@click.option("-o", "--out", multiple=True, metavar="FILE.csv|png|svg|pdf", type=click.Path(),
              help="Write the matrix: counts, or a picture (needs matplotlib); repeatable.")  # fmt: skip
@click.option("--level", type=int, default=0, help="Level of the net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated.")
@sparse_option
@device_options
@data_options
@code_options
def command(
    model: str,
    weights: str,
    iterations: int | None,
    layer: str | None,
    labels: str | None,
    pairs: int,
    out: tuple[str, ...],
    level: int,
    stage: str,
    sparse: str | None,
    gpu: str | None,
    device: str | None,
    data_budget: int,
    workers: int,
    allow_python_layers: bool,
) -> None:
    """Count which classes a net takes for which, over the whole test set.

    Each record counts once: the mean that `test` prints weighs batches, and a class's accuracy is 0 there in every
    batch that lacks the class. Here a class that the set lacks is called absent. Works for maps of labels, too.
    """
    from forcereg.report.plot import CSV, FILES, figure_type, picture_kind
    from forcereg.report.progress import Shown
    from forcereg.system.files import check_writable
    from forcereg.workflows.confusion import confusion

    # all of these before the count, which may take long
    kinds = [picture_kind(path, FILES) for path in out]
    for path in out:
        check_writable(path)
    if {*kinds} - {CSV}:
        figure_type()  # without matplotlib it ends here, not after the count
    with Shown() as observer:
        found = confusion(
            model, weights, iterations=iterations, layer=layer, labels=labels, level=level, stage=stage,
            sparse=sparse, device=asked_devices(gpu, device)[0], data_budget=data_budget, workers=workers,
            allow_python_layers=allow_python_layers, observer=observer,
        )  # fmt: skip
    show(found, pairs)
    for path in out:
        found.write(path)
    if out:
        echo(f"wrote {' and '.join(out)}")


def show(found: NamedConfusion, pairs: int) -> None:
    """Prints tables and what they come to."""
    from forcereg.study.confusion_report import SHOWN, class_table, pair_table

    for one in found.sparse:
        echo(f"{one.layer}: {one.text}")
    class_table(found, found.titles).show()
    classes, absent = len(found.counts), sum(share is None for share in found.accuracies)
    if classes > SHOWN:
        echo(
            f"the {SHOWN} worst of {classes - absent:,} classes; -o FILE.csv has all"
            + f", {absent:,} absent" * bool(absent)
        )
    if pairs and found.pairs(1):
        pair_table(found, found.titles, pairs).show()
    total, right = int(found.items.sum()), int(found.right.sum())
    seen = f"{found.batches:,} batches" if found.records is None else f"all {found.records:,} records"
    echo(f"accuracy {found.accuracy:.4%}: {right:,} of {total:,} right, {seen}, layer '{found.layer}'")
    if found.ignored:
        echo(f"{found.ignored:,} more have the label that is ignored")
    if lost := int(found.counts[:, -1].sum()):
        echo(f"{lost:,} have scores that aren't numbers, and count as wrong")
