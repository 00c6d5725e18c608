"""`forcereg frontier`: nets compared by the accuracy that they keep at a cost, in MACs and in measured time."""

from __future__ import annotations

import datetime
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Named, Picked
from forcereg.lowrank.ranks import Choice
from forcereg.lowrank.rule import Rule, check_rule, criterion_of
from forcereg.lowrank.rules import MaxMacs
from forcereg.report.plot import picture_kind
from forcereg.study import frontier as engine
from forcereg.study.bench import Bench, bench_of, unmeasured
from forcereg.study.evaluate import check_taught
from forcereg.study.frontier import Made, Point, Subject, Target, planned, timed
from forcereg.study.frontier_report import as_csv, picture
from forcereg.study.judged import Judged
from forcereg.study.opened import Opened, Opening
from forcereg.study.rule_names import named
from forcereg.study.several import Key, labels_of, opened_nets
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import make_folder, write_bytes, write_text
from forcereg.system.paths import StrPath, listed
from forcereg.version import __version__

USUAL = tuple(MaxMacs(share) for share in (0.15, 0.2, 0.3, 0.4, 0.5, 0.7))
"""What is aimed at without another rule."""


@dataclass(frozen=True)
class Frontier:
    """What nets come to at their costs: the whole nets, and each decomposed by every rule that could be met.

    `how`: the way times were taken, "" for not at all. `finetune`: iterations. `runs`: how many nets were scored; the
    others were known. `teacher`: the snapshot that taught them.

    >>> rule, options = forcereg.MaxError(0.2), {"solver": "solver.prototxt", "latency": "no"}
    >>> found = forcereg.frontier("net_iter_20.caffemodel.h5", rule=rule, **options)
    >>> len(found.points), found.runs, found.remarks()[1]
    (2, 2, 'times: not measured; fine-tuned for 0 iterations')
    """

    points: tuple[Point, ...]
    how: str
    finetune: int
    runs: int
    teacher: StrPath | None = None

    @checked
    def write(self, picture_file: StrPath, by: str = "forcereg.frontier") -> None:
        """Writes the picture, by its name's ending .png, .svg or .pdf, and beside it the points as .csv.

        `by`: the call, for the first of the remarks that open the CSV file. Raises UsageError for another ending,
        ForceregError without matplotlib and if the system refuses.
        """
        path = Path(picture_file)
        kind = picture_kind(path)
        write_text(path.with_suffix(".csv"), as_csv(self.points, [by, *self.remarks()]))
        write_bytes(path, picture(self.points, kind, self.how))

    def remarks(self) -> list[str]:
        """How the figures came about: versions, machine and date."""
        versions = f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
        taught = "" if self.teacher is None else f", taught by {self.teacher}"
        times = f"{self.how}, medians" if self.how else "not measured"
        return [
            f"{versions}, {platform.machine()}, {datetime.date.today()}",
            f"times: {times}; fine-tuned for {self.finetune} iterations{taught}",
        ]


@checked
def frontier(
    snapshots: StrPath | Sequence[StrPath],
    *,
    solver: StrPath | None,
    rule: Rule | Sequence[Rule] | Mapping[str, Rule] = USUAL,
    method: str | Sequence[str] = "pca",
    finetune: int = 0,
    teacher: StrPath | None = None,
    labels: str | Sequence[str] | None = None,
    latency: str = "cpu",
    batch: int = 32,
    runtime: str = "torch",
    threads: int | None = None,
    scores: StrPath | None = None,
    tuned: StrPath | None = None,
    even_if_dearer: bool = False,
    layers: Picked | str | None = None,
    except_layers: Named | str = (),
    model: StrPath | None = None,
    fold_bn: bool = False,
    fc: bool = False,
    multiple: int = 1,
    data_aware: int | None = None,
    seed: int = 0,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> Frontier:
    """Decomposes nets by every rule and method, and scores them on the test net of `solver`.

    `snapshots`: .caffemodel files, also as .h5, or their solver states. `rule`: one, several, or a mapping of what to
    call them. `method`: one or several. `finetune`: iterations to train each net further, without force, at a tenth of
    the solver's base_lr, with `teacher`, a snapshot, learning from that one's net as well, as in `forcereg.finetune`;
    none is done twice if `tuned` names a folder for their snapshots, no net scored twice if `scores` names a file.
    `labels`: the nets' names; None: what their paths differ in. `latency`: "cpu" or "cuda", where the nets' forward
    pass is measured with `batch` images by `runtime` (torch; onnxruntime and openvino run them as `export` writes them)
    with `threads`, or "no". All other keywords are those of
    `forcereg.decompose`. `observer` is told each net, and what was left out.

    The result has `.points`, with `.net`, `.method`, `.target` (the rule), `.ranks`, `.macs`, `.params`, `.accuracy`
    and `.tuned` (shares of 1), `.milliseconds`; and `.write("out.svg")`, for picture and CSV. Raises UsageError if no
    rule can be met, ForceregError as `forcereg.decompose`; KeyboardInterrupt, when a fine-tuning that is interrupted
    has saved itself.

    >>> nets = ["net_iter_20.caffemodel.h5"]
    >>> found = forcereg.frontier(nets, solver="solver.prototxt", rule=forcereg.Ranks([4, 6]), latency="no")
    >>> [(point.target, point.ranks) for point in found.points]
    [('whole', {}), ('ranks 4,6', {'conv1': 4, 'conv2': 6})]
    >>> found.points[1].macs < found.points[0].macs
    True
    """
    tell, paths = Tell(observer), listed(snapshots)
    if not paths:
        raise UsageError("snapshots is empty; give one or several")
    names, rules = labels_of(paths, labels), by_name(rule)
    check_taught(teacher, finetune)
    if latency == "no":
        unmeasured(runtime, threads)
    clock = None if latency == "no" else bench_of(latency, runtime, threads)
    asked = Opening(
        model=model, method="", layers=layers, except_layers=except_layers, fc=fc, multiple=multiple,
        fold_bn=fold_bn, data_aware=data_aware, seed=seed, solver=solver, device=device, data_budget=data_budget,
        workers=workers, allow_python_layers=allow_python_layers, input_shapes=input_shapes or {}, tell=tell,
        teacher=teacher,
    )  # fmt: skip
    if scores is not None:
        # before hours of scoring: a folder that can't be made is told now
        make_folder(Path(scores).parent)
    evaluator = asked.evaluator(None if scores is None else Path(scores))
    opened = opened_nets(dict(zip(names, paths, strict=True)), asked, methods_of(method))
    subjects = [Subject(*key, one.prepared, one.weights, one.accounts.cost) for key, one in opened.items()]
    judged = {key: Judged(one, replace(asked, method=key[1], scorer=evaluator)) for key, one in opened.items()}
    targets = [Target(text, partial(chosen, judged, even_if_dearer, one)) for text, one in rules.items()]
    plan = planned(subjects, targets, tell.note)
    with folder_of(tuned) as folder:
        # all are made before one is timed: they take turns at that
        made = told(engine.frontier(plan, evaluator, finetune, folder, tell.note), tell.steps("net", len(plan)))
    points, how = measured(made, opened, clock, batch, tell)
    return Frontier(tuple(points), how, finetune, evaluator.runs, teacher)


# -- what is asked for


def by_name(rule: Rule | Sequence[Rule] | Mapping[str, Rule]) -> Mapping[str, Rule]:
    """The rules and what each is called. Raises UsageError for one that says the methods, too."""
    if not isinstance(rule, Mapping):
        given = list(rule) if isinstance(rule, Iterable) and not isinstance(rule, str) else [rule]
        for one in given:
            check_rule(one)  # before it is asked for a name
        rule = {named(one): one for one in given}
    for one in rule.values():
        check_rule(one)
    if layered := [name for name, one in rule.items() if one.layers is not None]:
        raise UsageError(f"{layered[0]}: says layers and methods of its own, so it can't be compared over methods")
    return rule


def methods_of(method: str | Sequence[str]) -> list[str]:
    """The methods that a text "pca,vh" or a sequence names."""
    return [one.strip() for one in (method.split(",") if isinstance(method, str) else method)]


@contextmanager
def folder_of(tuned: StrPath | None) -> Iterator[Path]:
    """The folder given, or one that is gone afterwards."""
    if tuned is not None:
        yield Path(tuned)
        return
    with tempfile.TemporaryDirectory(prefix="forcereg-") as folder:
        yield Path(folder)


# -- steps


def chosen(judged: Mapping[Key, Judged], even_if_dearer: bool, rule: Rule, subject: Subject) -> Mapping[str, Choice]:
    """The ranks of a subject by a rule."""
    rule.check(subject.method, has_data=True)
    return criterion_of(rule, judged[subject.name, subject.method], even_if_dearer)(subject.prepared.candidates)


def told(nets: Iterator[Made], step: Callable[[str], None]) -> list[Made]:
    """All nets, what each came to told as soon as it is made."""
    made = []
    for one in nets:
        made.append(one)
        point = one.point
        name = " ".join(part for part in (point.net, point.method, point.target) if part)
        tuned = "" if point.tuned is None else f", fine-tuned {point.tuned:.4f}"
        step(f"{name}: accuracy {point.accuracy:.4f}{tuned}")
    return made


def measured(
    made: Sequence[Made], opened: Mapping[Key, Opened], bench: Bench | None, batch: int, tell: Tell
) -> tuple[list[Point], str]:
    """The points with each net's time, and how it was taken; without for no bench.

    Where nets can't run by themselves, that is told.
    """
    points = [one.point for one in made]
    if bench is None:
        return points, ""
    accounts = {name: one.accounts for (name, _), one in opened.items()}
    try:
        return timed(made, accounts, bench, batch, tell.note), f"batch {batch} on {bench.text}"
    except ForceregError as error:
        tell.note(f"not measured: {error}")
        return points, ""
