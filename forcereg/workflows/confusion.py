"""`forcereg confusion`: which classes a net takes for which, over its whole test set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.net.scoring import check_blobs, coverage
from forcereg.net.sparse import Execution
from forcereg.report.plot import CSV, FILES, picture_kind
from forcereg.schema.rules import stage_names
from forcereg.study import confusion_report
from forcereg.study.confusion import Confusion, class_names
from forcereg.study.confusion import confusion as counted
from forcereg.study.sparse import execute
from forcereg.system.arguments import checked, several, text
from forcereg.system.device import choose_device
from forcereg.system.events import Observer, Tell
from forcereg.system.files import read_file, write_bytes, write_text
from forcereg.system.paths import StrPath


@dataclass(frozen=True)
class NamedConfusion(Confusion):
    """A Confusion whose classes may have `names`; `sparse`: how convolutions ran, where they left zeros out."""

    names: list[str] | None = None
    sparse: Sequence[Execution] = ()

    @property
    def titles(self) -> list[str]:
        """What to call each class: its number, and its name if there are any."""
        return confusion_report.titles(self.names, len(self.counts))

    @checked
    def write(self, path: StrPath) -> None:
        """Writes the counts as .csv, or their picture as .png, .svg or .pdf.

        Raises UsageError for another ending, ForceregError without matplotlib and if the system refuses.
        """
        kind = picture_kind(path, FILES)
        if kind == CSV:
            write_text(Path(path), confusion_report.as_csv(self, self.names))
        else:
            write_bytes(Path(path), confusion_report.picture(self, self.titles, kind))


@checked
def confusion(
    model: StrPath | Any,
    weights: StrPath,
    *,
    iterations: int | None = None,
    layer: str | None = None,
    labels: StrPath | Sequence[str] | None = None,
    level: int = 0,
    stage: str | Sequence[str] = (),
    sparse: str | None = None,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> NamedConfusion:
    """Counts which classes a net takes for which: every record of its TEST phase's data once, whatever the batch size.

    `model`: a path, prototxt text or NetParameter; `weights`: a .caffemodel, also as .h5. `iterations`: batches to run,
    all of them whole; None: all records, each once. `layer`: the Accuracy or loss whose scores and labels count; None:
    the last top-1 Accuracy. `labels`: the classes' names, or a file of them, one a line, as synset_words. `level`,
    `stage`: of the net's state. `device`: "auto", "cpu", "cuda" or "cuda:N". `sparse`, `data_budget` (MiB), `workers`,
    `allow_python_layers`: as for `forcereg.score`. `observer` is told how many batches are done.

    The result has `.counts`, int64 (classes, classes + 1): rows are the true classes, the last column is of items whose
    scores aren't numbers; `.accuracy`, a share of 1, `.accuracies` of each class, None for one that the set lacks;
    `.pairs(most)`, the mistakes; and `.write(path)`. Raises ForceregError for anything wrong in the files, for a net
    without data or scores of classes, and for labels of another number than the classes.

    >>> found = forcereg.confusion("net.prototxt", "net_iter_20.caffemodel.h5", labels=["top", "middle", "bottom"])
    >>> found.counts.shape, found.items.tolist(), found.accuracy
    ((3, 4), [10, 10, 10], 1.0)
    >>> found.write("confusion.csv")
    """
    tell = Tell(observer)
    path = labels if isinstance(labels, str | os.PathLike) else None
    # before the net is loaded: a wrong path costs no time
    names: Any = labels if path is None else read_lines(path)
    if path is None and labels is not None:
        names = several(text, "a file, or the classes' names in a list")("labels", labels)
    where = choose_device(device, None, tell.warn)
    net = load_net(
        model, weights, "TEST", level, stage_names(stage), device=where, budget=data_budget << 20, workers=workers,
        allow_python_layers=allow_python_layers,
    )  # fmt: skip
    check_blobs(net, where)
    for line in repeated(net, iterations):
        tell.warn(line)
    try:
        ways = execute(net, sparse, tell)
        found = counted(net, iterations, layer, tell)
    finally:
        net.close()
    called = None if names is None else class_names(names, len(found.counts), "labels" if path is None else str(path))
    return NamedConfusion(found.counts, found.ignored, found.batches, found.records, found.layer, called, ways)


def repeated(net: Net, iterations: int | None) -> list[str]:
    """What to say of data layers some of whose records count more than once."""
    seen = coverage(net, iterations, quick=True) if iterations else ()
    return [
        f"{iterations:,} batches go round the {one.records:,} records: some count again"
        for one in seen
        if one.seen > one.records
    ]


def read_lines(path: StrPath) -> list[str]:
    """The lines of a text file. Raises ForceregError."""
    try:
        # a limit, since a path may name what never ends
        return read_file(os.fspath(path), 64 << 20).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is no UTF-8 text"
        raise ForceregError(f"--labels {path} cannot be read: {reason}") from error
