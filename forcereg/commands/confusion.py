"""forcereg confusion"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forcereg.commands.options import asked_devices, code_options, data_options, device_options, stage_list
from forcereg.errors import ForceregError, UsageError
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.study.confusion import Confusion

KINDS = ("csv", "png", "svg", "pdf")


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
    import warnings

    from forcereg.net.load import load_net
    from forcereg.net.scoring import check_blobs, coverage
    from forcereg.report.plot import figure_type
    from forcereg.study.confusion import confusion
    from forcereg.system.device import choose_device
    from forcereg.system.files import check_writable

    kinds = [kind_of(path) for path in out]
    for path in out:
        check_writable(path)
    if set(kinds) - {"csv"}:
        figure_type()
    names = None if labels is None else read_lines(labels)
    where = choose_device(asked_devices(gpu, device)[0], None, warnings.warn)
    net = load_net(
        model, weights, "TEST", level, stage_list(stage), device=where,
        budget=data_budget << 20, workers=workers, allow_python_layers=allow_python_layers,
    )  # fmt: skip
    check_blobs(net, where)
    for one in coverage(net, iterations, quick=True) if iterations else ():
        if one.seen > one.records:
            warnings.warn(
                f"{iterations:,} batches go round the {one.records:,} records: some count again", stacklevel=1
            )
    try:
        found = confusion(net, iterations, layer)
    finally:
        net.close()
    show(found, names, labels or "", pairs, list(zip(out, kinds, strict=True)))


def show(found: Confusion, lines: list[str] | None, labels: str, pairs: int, out: list[tuple[str, str]]) -> None:
    """Prints tables and writes files. Raises ForceregError."""
    from forcereg.study.confusion import class_names
    from forcereg.study.confusion_report import SHOWN, as_csv, class_table, pair_table, picture, titles
    from forcereg.system.files import write_bytes, write_text

    classes = len(found.counts)
    names = None if lines is None else class_names(lines, classes, labels)
    called = titles(names, classes)
    class_table(found, called).show()
    absent = sum(share is None for share in found.accuracies)
    if classes > SHOWN:
        echo(
            f"the {SHOWN} worst of {classes - absent:,} classes; -o FILE.csv has all"
            + f", {absent:,} absent" * bool(absent)
        )
    if pairs and found.pairs(1):
        pair_table(found, called, pairs).show()
    total, right = int(found.items.sum()), int(found.right.sum())
    seen = f"{found.batches:,} batches" if found.records is None else f"all {found.records:,} records"
    echo(f"accuracy {found.accuracy:.4%}: {right:,} of {total:,} right, {seen}, layer '{found.layer}'")
    if found.ignored:
        echo(f"{found.ignored:,} more have the label that is ignored")
    if lost := int(found.counts[:, -1].sum()):
        echo(f"{lost:,} have scores that aren't numbers, and count as wrong")
    for path, kind in out:
        if kind == "csv":
            write_text(path, as_csv(found, names))
        else:
            write_bytes(path, picture(found, called, kind))
    if out:
        echo(f"wrote {' and '.join(path for path, _ in out)}")


def kind_of(path: str) -> str:
    """What is written to a file of this name. Raises UsageError for an ending that can't be."""
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise UsageError(f"--out is '{path}'; expected a name that ends in {', '.join(f'.{one}' for one in KINDS)}")
    return kind


def read_lines(path: str) -> list[str]:
    """The lines of a text file. Raises ForceregError."""
    from forcereg.system.files import read_file

    try:
        return read_file(path, 64 << 20).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is no UTF-8 text"
        raise ForceregError(f"--labels {path} cannot be read: {reason}") from error
