"""What a sweep is to do, and its records: settings, the rule that cuts, and what each run was and came to."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Prepared, Selection
from forcereg.lowrank.ranks import Choice, by_error, unless_dearer
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile, to_text
from forcereg.solver.setup import problems, solver_root, tested_nets, trained_net
from forcereg.study.accounting import Accounts
from forcereg.study.evaluate import Evaluator
from forcereg.study.grid import Setting
from forcereg.study.scores import check_share
from forcereg.system import sidefiles
from forcereg.system.paths import StrPath

RUN, RESULT, FAILED, CLAIM = "run.json", "result.json", "failed.json", "claim"
"""The files of a run's folder that say what it is, what it came to, why it came to nothing, and who runs it now."""


@dataclass(frozen=True)
class Trained:
    """A net to be cut: its weights, its test net's layers, what costs are of, and what scores nets made of it."""

    model: snapshot.ModelFile
    prepared: Prepared
    accounts: Accounts
    evaluator: Evaluator


@dataclass(frozen=True)
class Cut:
    """How the trained nets are cut: which layers by which methods, and the rule that chooses their ranks.

    `words`: the rule for people; `key`: all that the cut depends on, by name. `choose` raises ForceregError. `scores`:
    it looks at accuracies, so that only a trained net can be asked.
    """

    words: str
    key: dict[str, str]
    choose: Callable[[Trained], Mapping[str, Choice]]
    selection: Selection = field(default_factory=Selection)
    scores: bool = False


def at_error(error: float) -> Cut:
    """Every layer at the smallest rank by pca whose relative squared error is at most `error`, in [0, 1].

    Those whose chain would cost no less than they do stay whole.
    """
    criterion = unless_dearer(by_error(error))
    key = {"error": f"{error:g}", "method": "pca"}
    return Cut(f"error {error:g}", key, lambda trained: criterion(trained.prepared.candidates))


@dataclass(frozen=True)
class Plan:
    """What every run of a sweep shares: the solver, models to start from, the cut, and how long to fine-tune.

    `error`: at which the ranks that filters need are told, whatever the cut is; None as `cut`: at that. `options` are
    `Solver`'s. `whole`: whether whole nets are fine-tuned beside the cut ones. `teacher`: what teaches them meanwhile,
    and `taught`, what tells it from others.
    """

    solver: SolverFile
    weights: Sequence[Path]
    error: float
    finetune: int
    options: Mapping[str, Any] = field(default_factory=dict)
    cut: Cut | None = None
    whole: bool = True
    teacher: StrPath | None = None
    taught: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        """What its results depend on, beside their runs."""
        return Asked(self.error, self.finetune, {**self.rule.key, **self.taught})

    @property
    def rule(self) -> Cut:
        """The cut."""
        return at_error(self.error) if self.cut is None else self.cut


@dataclass(frozen=True)
class Result:
    """What a run came to, None where it didn't get. Accuracies are None for a net without one.

    All scores are of the same test records. The net as trained has `accuracy` and `loss`; `accuracy_whole_tuned` is
    its own, fine-tuned as long as the cut net's `accuracy_tuned`. `ranks_at_error` of `full_ranks`: how many filters of
    each of the `layers` hold all but the sweep's error. `ranks` of the layers that can be cut, in order: 4, 4-3 for a
    method of two ranks, or "whole". `macs` are multiply-accumulates of the test net for one item, `macs_cut` cut.
    `seconds` since the run was last begun. `failed`: why training or fine-tuning ended early.
    """

    fields: dict[str, str]
    seed: int
    accuracy: float | None = None
    loss: float | None = None
    accuracy_whole_tuned: float | None = None
    ranks_at_error: list[int] = field(default_factory=list)
    full_ranks: list[int] = field(default_factory=list)
    ranks: list[str] = field(default_factory=list)
    macs: int | None = None
    macs_cut: int | None = None
    accuracy_cut: float | None = None
    accuracy_tuned: float | None = None
    seconds: float = 0.0
    failed: str = ""
    layers: list[str] = field(default_factory=list, metadata=sidefiles.LATER)

    def check(self) -> None:
        """Raises ValueError for what no run comes to."""
        for accuracy in (self.accuracy, self.accuracy_whole_tuned, self.accuracy_cut, self.accuracy_tuned):
            check_share(accuracy)
        counts = [*self.full_ranks, *(macs for macs in (self.macs, self.macs_cut) if macs is not None)]
        ranks = list(itertools.zip_longest(self.ranks_at_error, self.full_ranks, fillvalue=0))
        if any(not 0 < rank <= full for rank, full in ranks) or min(counts, default=0) < 0:
            raise ValueError("ranks or MACs that can't be")
        # int() refuses numbers of thousands of digits, which only damage leaves
        if any(re.fullmatch(r"whole|\d{1,9}(-\d{1,9})*", rank, re.ASCII) is None for rank in self.ranks):
            raise ValueError("ranks that no layer has")
        if not 0 <= self.seconds < math.inf:
            raise ValueError("seconds that can't be")
        self.check_end()

    def check_end(self) -> None:
        """Raises ValueError unless it has come to its end."""
        if self.failed or not self.ranks:
            raise ValueError("a run that hasn't come to its end")


class Failure(Result):
    """What a run came to that failed."""

    def check_end(self) -> None:
        """Raises ValueError unless it has failed."""
        if not self.failed:
            raise ValueError("a run that hasn't failed")


@dataclass(frozen=True)
class Run:
    """What decides how a run trains: the solver's text, and digests of its nets and of models to start from."""

    solver: str
    net: list[str]
    weights: list[str]


@dataclass(frozen=True)
class Asked:
    """The sweep's options that a result depends on, beside its run."""

    error: float
    finetune: int
    cut: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """A result as its file has it."""

    asked: Asked
    result: Result


@dataclass(frozen=True)
class KeptFailure:
    """The same of a run that failed."""

    asked: Asked
    result: Failure


def runs_of(plan: Plan, settings: Sequence[Setting], out: Path) -> list[Run]:
    """What decides how each run trains. Raises ForceregError if a folder holds a run of something else."""
    weights = []
    for path in plan.weights:
        snapshot.read_model(path)  # that it is one is told before anything trains
        with open(path, "rb") as file:
            weights.append(hashlib.file_digest(file, "sha256").hexdigest())
    runs = []
    for setting in settings:
        solver = solver_of(plan, setting)
        for problem in problems(solver.message, solver.name):
            raise problem
        root = solver_root(solver)
        own = trained_net(solver, root)
        tests = tested_nets(solver, root, own.file)
        if not tests:
            raise ForceregError(
                f"{solver.name}: has no test net, so runs can't be compared; set test_iter and test_interval"
            )
        # the nets' text, not their names: an edited net is another run
        nets = [hashlib.sha256(net.file.text.encode()).hexdigest() for net in (own, *tests)]
        runs.append(Run(to_text(solver.message), nets, weights))
        check_same(out / setting.folder, runs[-1])
    return runs


def is_of(result: Result, setting: Setting) -> bool:
    """Whether it is of this run, and not one of the same folder's name."""
    return (result.fields, result.seed) == (setting.fields, setting.seed)


def check_same(folder: Path, run: Run) -> None:
    """Raises ForceregError if the folder holds another run, or what can't be read."""
    try:
        known = sidefiles.of_form(sidefiles.read_json(folder / RUN), Run)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ForceregError(
            f"{folder / RUN}: can't be read as what a sweep wrote ({why}); give another --out, or delete {folder} to "
            "run it anew"
        ) from None
    if known == run:
        return
    what = next(one.name for one in fields(Run) if getattr(known, one.name) != getattr(run, one.name))
    there, here = (one.solver.splitlines() for one in (known, run))
    lines = [", ".join(sorted(set(a) - set(b))[:3]) or "not set" for a, b in ((there, here), (here, there))]
    change = f" ({lines[0]}; now {lines[1]})" if what == "solver" else ""
    raise ForceregError(
        f"{folder}: holds a run with other {what}{change}; give another --out, or delete it to run it anew"
    )


def solver_of(plan: Plan, setting: Setting) -> SolverFile:
    """The sweep's solver with this run's settings."""
    if plan.weights and "weights" in setting.fields:
        raise UsageError("--weights and --set weights are both given; use one")
    file = with_settings(plan.solver, [f"{name}={value}" for name, value in setting.fields.items()])
    # saved at its end whatever the solver says: with other rules it is cut again, not trained again
    file.message.random_seed, file.message.snapshot_after_train = setting.seed, True
    file.message.ClearField("snapshot_prefix")  # the run's folder, which may move: no part of what the run is
    if plan.weights:
        file.message.ClearField("weights")
    return file
