"""A page about runs, snapshots and studies, for somebody who wasn't there: `forcereg report`."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from forcereg.errors import ForceregError, UsageError, check_share
from forcereg.net.deploy import Deployed, deploy
from forcereg.net.draw import dot, graph, has_graphviz, picture, text_tree
from forcereg.net.load import shape_net
from forcereg.net.read import ReadNet, read_net_of
from forcereg.report.latency import device_text
from forcereg.report.page import Command, Facts, Gallery, Grid, Line, Part, Picture, Section, Text, check_name, page
from forcereg.report.plot import by_panel, draw, ends, figure_type
from forcereg.report.table import Table
from forcereg.study import confusion_report
from forcereg.study.filters.images import Images
from forcereg.study.reported import history, layers, studies
from forcereg.study.reported.sources import Sources, before, digest, sources, where
from forcereg.study.several import labels_of
from forcereg.system.arguments import checked
from forcereg.system.device import choose_device
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_text
from forcereg.system.paths import StrPath, listed
from forcereg.version import __version__
from forcereg.workflows.confusion import confusion
from forcereg.workflows.plot import read_runs
from forcereg.workflows.ranks import ERRORS, ranks
from forcereg.workflows.summary import summary
from forcereg.workflows.time import time

T = TypeVar("T")
SIDE = 25
"""Mistakes that are listed."""


@dataclass(frozen=True)
class Report:
    """What there is to say of runs, snapshots and studies. `left`: what isn't known or can't be done, a line each.

    `device`: where nets were scored and measured.

    >>> forcereg.report_on("train.json", device="cpu").write("curves.html")
    """

    title: str
    sections: tuple[Section, ...] = field(repr=False)
    left: tuple[str, ...]
    device: str

    def html(self, by: str = "forcereg.report_on") -> str:
        """The page; `by`: the call that made it."""
        missing = [Section("Not in this report", [Line(text) for text in self.left])] if self.left else []
        return page(self.title, [self._head(by), *self.sections, *missing])

    @checked
    def write(self, path: StrPath, by: str = "forcereg.report_on") -> None:
        """Writes the page to a .html file. Raises UsageError for another ending, ForceregError if refused."""
        check_name(path)
        write_text(Path(path), self.html(by))

    def _head(self, by: str) -> Section:
        facts = Facts(
            [
                ("on", f"{datetime.date.today()}, {platform.system()} {platform.machine()}"),
                ("nets run on", self.device),
                ("with", f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
            ]
        )
        return Section("This report", [Command(by), facts])


@checked
def report_on(
    runs: StrPath | Sequence[StrPath],
    *,
    title: str | None = None,
    error: Sequence[float] = ERRORS,
    model: StrPath | None = None,
    fc: bool = False,
    labels: StrPath | Sequence[str] | None = None,
    score: bool = True,
    passes: int = 10,
    batch: int = 1,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> Report:
    """All that there is to show of runs, snapshots and studies, on one page that needs nothing else.

    `runs`: snapshots (.caffemodel, also as .h5, or solver states), logs (lines, or what --log-json wrote), a study's
    results.csv or frontier's OUT.csv, and folders, of which each run's last snapshot, the logs and the results are
    taken. The page has the logs' curves; each study's table and picture; of each snapshot how it came about, the net,
    its layers with their costs and the milliseconds of `passes` forward passes (0: not measured) with `batch` items,
    the ranks that they need at each `error` (0 to 1; of fully connected ones with `fc`), the angles between their
    filters in it and in the run's first snapshot (of a decomposed net: in the one that it was made of), the first
    filters, and with `score` accuracy and confusion matrix on its test net; the commands that repeat it, and a
    checksum of every file.

    `model`: the net of the snapshots, None for the one that each holds. `labels`: the classes' names, or a file of
    them. `device`, `data_budget` (MiB), `workers`, `allow_python_layers`: as for `forcereg.score`; `input_shapes`: as
    for `forcereg.summary`. `observer` is told how it goes. Nothing is made up: what isn't known is a line in `.left`.

    The result has `.sections`, `.left` and `.write("report.html")`. Raises UsageError for what doesn't go together,
    ForceregError for files that can't be read, and without matplotlib (the extra `plot`).

    >>> made = forcereg.report_on(["train.json", "net_iter_20.caffemodel.h5"], passes=2, device="cpu")
    >>> [section.title for section in made.sections if not section.inner]
    ['At a glance', 'Curves', 'net_iter_20', 'Files']
    >>> made.html("a script of mine")[:15]
    '<!doctype html>'
    >>> made.write("report.html")
    """
    for bound in error:
        check_share("the error bound", bound)
    if passes < 0:
        raise UsageError(f"passes is {passes}; expected 0 or more")
    figure_type()  # without matplotlib it ends here
    if not (named := listed(runs)):
        raise UsageError("runs is empty; give one or several")
    tell = Tell(observer)
    chosen = choose_device(device, None, tell.warn)
    found = sources(named)
    asked = Asked(
        named=found.snapshots,
        error=error, model=model, fc=fc, labels=labels, score=score, passes=passes, batch=batch, device=str(chosen),
        data_budget=data_budget, workers=workers, allow_python_layers=allow_python_layers,
        input_shapes=input_shapes, observer=observer, tell=tell,
    )  # fmt: skip
    names = labels_of(found.snapshots, None) if found.snapshots else []
    nets = list(zip(found.snapshots, names, strict=True))
    details = [one for path, name in tell.track(nets, "net", len(nets)) for one in asked.of_net(path, name)]
    glance = [Section("At a glance", [layers.glance(asked.seen)])] if asked.seen else []
    sections = [*glance, *asked.of_studies(found), *asked.of_logs(found), *details]
    sections.append(Section("Files", [checksums([*found.files, *asked.beside])]))
    if title is None:
        title = ", ".join(names or map(where, found.files))
    return Report(title, tuple(sections), tuple(asked.left), device_text(chosen))


def checksums(files: Sequence[Path]) -> Grid:
    """What tells each file from any other."""
    rows = [[str(path), f"{size:,}", checksum] for path in dict.fromkeys(files) for size, checksum in [digest(path)]]
    return Grid(["file", "bytes", "SHA-256"], rows, frozenset([1]))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The keywords of `report_on`, the snapshots `named`, and what comes of them.

    `left`: what isn't known, a line each. `beside`: files that were read, too. `seen`: the nets, by name.
    """

    named: Sequence[Path]
    error: Sequence[float]
    model: StrPath | None
    fc: bool
    labels: StrPath | Sequence[str] | None
    score: bool
    passes: int
    batch: int
    device: str
    data_budget: int
    workers: int
    allow_python_layers: bool
    input_shapes: Mapping[str, Sequence[int]] | None
    observer: Observer | None
    tell: Tell
    left: list[str] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)
    seen: dict[str, layers.Seen] = field(default_factory=dict)

    def tried(self, what: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; where that can't be had, None and a line."""
        try:
            return make()
        except ForceregError as error:
            self.left.append(f"{what}: {error}")
            return None

    # -- what isn't a net

    def of_studies(self, found: Sources) -> Iterator[Section]:
        """Each study's table and pictures."""
        for path in found.studies:
            study = studies.read_study(path)
            yield Section(f"{study.kind} {where(path)}", list(studies.parts(study, self.left.append)))

    def of_logs(self, found: Sources) -> Iterator[Section]:
        """The curves of all logs, and where they ended."""
        if not found.logs:
            if found.snapshots:
                self.left.append("curves: no log is given; add what train printed, or what --log-json wrote")
            return
        read = read_runs(found.logs, None, self.tell, silent=True)
        silent = [run.name for run in read if not run.curves]
        self.left.extend(f"curves: {name} told no loss, score or rate (display, test_interval)" for name in silent)
        if not (runs := [run for run in read if run.curves]):
            return
        remarks = [Line(text, quiet=True) for run in runs for text in run.remarks]
        told = [Line(f"{run.name}: {text}") for run in runs for text in (run.best, run.ended) if text]
        drawn = [Picture(draw(own, "svg"), "svg", f"curves: {panel}") for panel, own in by_panel(runs).items()]
        yield Section("Curves", [Gallery(drawn), *remarks, *told, ends(runs, "where the curves end")])

    # -- a net

    def of_net(self, path: Path, name: str) -> Iterator[Section]:
        """All sections of a snapshot."""
        read = read_net_of(path, self.model, self.input_shapes, self.tell.warn)
        cuts = self.tried(f"how {name} was decomposed", lambda: history.cuts_of(read.model.attrs)) or []
        if history.SOLVER not in read.model.attrs:
            self.left.append(f"the solver of {name}: the file doesn't hold it, as Caffe's don't")
        yield Section(name, [history.facts(read.model, cuts), *history.texts(read.model.attrs)])
        self.seen[name] = layers.Seen()
        made = self.tried(f"the layers of {name}", lambda: self.deployed(read))
        if made is not None:
            yield Section("The net", [self.drawing(made)], inner=True)
            yield Section("Layers", list(self.costs(made, name)), inner=True)
        yield from self.of_filters(path, read, name, cuts)
        if self.score:
            yield from self.of_scores(read, name)
        if again := list(history.repeated(read.model, cuts)):
            yield Section("To make it again", again, inner=True)

    def deployed(self, read: ReadNet) -> Deployed:
        """The net as it is used."""
        given, model = self.input_shapes or {}, read.model
        make = partial(
            deploy, read.file, batch=self.batch, known_shapes={**(model.input_shapes or {}), **given},
            weighted=[name for name, blobs in model.layers.items() if blobs],
            allow_python_layers=self.allow_python_layers,
        )  # fmt: skip
        made = make()
        # labels have shapes, too, but are none of its inputs
        own = {name: shape for name, shape in given.items() if name in made.inputs}
        return make(input_shapes=own) if own else made

    def drawing(self, made: Deployed) -> Part:
        """By graphviz where it is installed, else as a text tree."""
        net = shape_net(made.net, allow_python_layers=self.allow_python_layers)
        nodes = graph(net.spec.layers, net.shapes)
        if not has_graphviz():
            return Text(text_tree(nodes))
        return Picture(picture(dot(nodes, ""), "svg"), "svg", "the net's layers and how data flows through them", True)

    def costs(self, made: Deployed, name: str) -> Iterator[Part]:
        """The table of layers, and how times were taken."""
        timing = None
        if self.passes:
            timing = self.tried(
                f"milliseconds of {name}",
                lambda: time(
                    made.net, iterations=self.passes, phase="TEST", device=self.device,
                    allow_python_layers=self.allow_python_layers,
                ),
            )  # fmt: skip
        else:
            self.left.append(f"milliseconds of {name}: not measured, as asked for")
        net = summary(made.net, allow_python_layers=self.allow_python_layers)
        seen = self.seen[name]
        seen.params, seen.macs = net.params, net.macs
        seen.milliseconds = timing.forward if timing else None
        yield layers.costs(net, timing)
        if timing:
            on = device_text(torch.device(self.device))
            yield Line(f"ms: means of {self.passes} forward passes, batch {self.batch}, on {on}.", quiet=True)

    def of_filters(self, path: Path, read: ReadNet, name: str, cuts: Sequence[history.Cut]) -> Iterator[Section]:
        """Ranks and angles, and the first layer's filters."""
        found = self.tried(
            f"ranks of {name}",
            lambda: ranks(
                path, error=self.error, fc=self.fc, model=self.model, input_shapes=self.input_shapes,
                allow_python_layers=self.allow_python_layers, observer=self.observer,
            ),
        )  # fmt: skip
        if found is None:
            return
        origin = cuts[-1].snapshot if cuts else None
        first = before(read.model.path, origin, self.named)
        if first is None:
            what = "its run's first snapshot" if origin is None else origin
            self.left.append(f"angles of {name} before: {what} isn't beside it")
        else:
            self.beside.append(first)
        earlier = first and self.tried(f"angles of {name} before", lambda: read_net_of(first, self.model))
        angles: dict[str, Sequence[float | None]] = {}
        for one in found.table.layers:
            then = layers.mean_angle(earlier, one.name) if earlier else None
            if (now := layers.mean_angle(read, one.name)) is not None:
                angles[one.name] = (then, now)
        parts: list[Part] = [layers.needed(found.table, history.ranks_of(cuts), angles)]
        said = "Ranks by pca within each relative squared error; the darker the bar, the larger the error."
        turned = ""
        if first is not None and earlier is not None:
            turned = f" Angles: means over all pairs of filters; before: in {where(first)}."
        yield Section("Ranks and angles", [*parts, Line(said + turned, quiet=True)], inner=True)
        layer = found.table.layers[0].name
        bank = self.tried(f"filters of {name}", lambda: layers.bank(read, layer, name))
        if bank is not None:
            view = Images(layer, (bank,))
            shown = Picture(view.picture("svg"), "svg", f"filters of {layer}")
            yield Section(
                f"Filters of {layer}", [shown, *(Line(line, quiet=True) for line in view.lines())], inner=True
            )

    def of_scores(self, read: ReadNet, name: str) -> Iterator[Section]:
        """Accuracy and what is taken for what."""
        found = self.tried(
            f"accuracy of {name}",
            lambda: confusion(
                read.file, read.model.path, labels=self.labels, device=self.device, data_budget=self.data_budget,
                workers=self.workers, allow_python_layers=self.allow_python_layers, observer=self.observer,
            ),
        )  # fmt: skip
        if found is None:
            return
        self.seen[name].accuracy = found.accuracy
        total, right = int(found.items.sum()), int(found.right.sum())
        said = f"{found.accuracy:.4%}: {right:,} of {total:,} right, on all records of the test net, each once."
        tables: dict[str, Table] = {"classes": confusion_report.class_table(found, found.titles)}
        if found.pairs(1):
            tables["most frequent mistakes"] = confusion_report.pair_table(found, found.titles, SIDE)
        matrix = Picture(confusion_report.picture(found, found.titles, "svg"), "svg", "which class is taken for which")
        grids = [Grid.of(table, title) for title, table in tables.items()]
        yield Section("Accuracy", [Line(said), matrix, *grids], inner=True)
