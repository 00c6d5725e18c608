"""A net that is opened to be decomposed: read from its snapshot, accounted for, its layers ready for their ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from forcereg.cost import Cost, Shapes
from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.lowrank.config import LayerRules
from forcereg.lowrank.decompose import Named, Picked, Prepared, Selection, prepare
from forcereg.lowrank.kinds import factorizer
from forcereg.net.held import is_path
from forcereg.net.read import ReadNet, read_net_of
from forcereg.schema.text import NetFile, SolverFile, read_solver
from forcereg.study.accounting import Accounts, accounts
from forcereg.study.evaluate import Evaluator
from forcereg.study.moments import TrainingData, prepare_aware
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath, listed

MIXED = "mixed"
"""The method that says: each layer by its own."""


@dataclass(frozen=True)
class Opened:
    """A net that waits for its ranks, and where it came from. `read`: the snapshot, its weights in the net's form.

    `accounts`: what costs are of.
    """

    read: ReadNet
    prepared: Prepared
    accounts: Accounts

    @property
    def weights(self) -> Mapping[str, Mapping[int, Any]]:
        """Those that `prepared` was made from."""
        return self.read.model.layers

    @cached_property
    def whole(self) -> Cost:
        """Of the whole net as it is; MACs are None where shapes are unknown."""
        return self.accounts.cost(self.prepared.file, self.prepared.weights)

    @cached_property
    def in_training(self) -> Cost | None:
        """Of the TRAIN net, where that isn't what costs are of and differs from it."""
        found = self.accounts.in_training(self.prepared.file)
        return None if found == self.whole else found

    @property
    def unknown(self) -> str:
        """Why MACs are unknown; empty if they are known."""
        if self.whole.macs is not None:
            return ""
        allowed = self.accounts.allow_python_layers
        if not allowed and any(one.type == "Python" for one in self.prepared.file.message.layer):
            return "MACs are unknown: the net has Python layers, which run with --allow-python-layers only"
        return (
            "MACs are unknown: data that isn't here (give --input-shape BLOB=N,C,H,W), or layers of your own that need "
            "--import"
        )

    @property
    def costed(self) -> str:
        """What costs are of, where that isn't plain; empty where it is."""
        if self.accounts.phase == "TRAIN":
            return "the net has no TEST net that can be built: costs are those of its TRAIN net"
        if self.in_training is None:
            return ""
        macs, params = self.in_training.macs, self.in_training.params
        return f"costs are those of the TEST net; the TRAIN net has {macs:,} MACs and {params:,} learned values"

    @property
    def remarks(self) -> list[str]:
        """What isn't plain about its costs."""
        return [line for line in (self.unknown, self.costed) if line]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How nets are opened: which net, which layers by which method, and what they may read and run on.

    The fields are the keywords of the workflows, and options of their commands. `model`: a net prototxt, None for the
    net that the snapshot holds. `layers`: just these, by names, patterns (conv*) or a function of a `LayerWeight`; None
    for all. `solver`: for what needs data. `data_budget`: MiB. `teacher`: of what is fine-tuned, see `Evaluator`.
    `scorer` takes the place of what `solver` gives.
    """

    model: StrPath | None = None
    method: str = "pca"
    layers: Picked | str | None = None
    except_layers: Named | str = ()
    fc: bool = False
    multiple: int = 1
    fold_bn: bool = False
    data_aware: int | None = None
    seed: int = 0
    solver: StrPath | None = None
    device: str | None = None
    data_budget: int = 2048
    workers: int = 0
    allow_python_layers: bool = False
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tell: Tell = field(default_factory=Tell)
    teacher: StrPath | None = None
    scorer: Evaluator | None = None

    # -- open: what was asked for

    def selection(self, rules: LayerRules | None = None) -> Selection:
        """Which layers to decompose and how. Raises UsageError for what doesn't go together."""
        only = self.layers if self.layers is None or callable(self.layers) else listed(self.layers)
        without = listed(self.except_layers)
        if not callable(only) and (both := sorted({*(only or ())}.intersection(without))):
            raise UsageError(f"--only-layers and --except-layers both name '{both[0]}'")
        if self.method not in (known := sorted([MIXED, *factorizer])):
            hint = did_you_mean(self.method, known) or f"; known are {', '.join(known)}"
            raise UsageError(f"unknown decomposition method '{self.method}'{hint}")
        if self.method == MIXED and rules is None:
            raise UsageError(
                "--method mixed takes each layer's method from decompose's --rank-config FILE.json; give that"
            )
        plain = Selection(
            self.method, {}, self.fc, only, without, seed=self.seed, fold_bn=self.fold_bn, multiple=self.multiple
        )
        return plain if rules is None else self._by_rules(plain, rules)

    def _by_rules(self, plain: Selection, rules: LayerRules) -> Selection:
        """The same for the layers alone that the rules name, each by its method."""
        for name in rules.layers:
            if self.method == MIXED and name not in rules.methods:
                raise UsageError(f"{rules.name}: layer '{name}' has no method; --method mixed needs one (\"pca\")")
        only = plain.only
        if callable(only):
            picks = only
            return replace(plain, methods=rules.methods, only=lambda one: one.name in rules.layers and picks(one))
        for name in only or ():
            if name not in rules.layers and not any(fnmatchcase(one, name) for one in rules.layers):
                raise UsageError(f"--only-layers names '{name}', for which {rules.name} has no rank")
        return replace(plain, methods=rules.methods, only=only or list(rules.layers))

    @cached_property
    def solver_file(self) -> SolverFile | None:
        """The solver's. Raises ForceregError."""
        return None if self.solver is None else read_solver(os.fspath(self.solver))

    def evaluator(self, scores: Path | None = None, solver: StrPath | None = None) -> Evaluator:
        """What scores nets on the solver's test net, or another `solver`'s; `scores`: the file that keeps them.

        Raises UsageError without a solver, ForceregError for a wrong one.
        """
        if self.scorer is not None:
            return self.scorer
        file = self.solver_file if solver is None else read_solver(os.fspath(solver))
        if file is None:
            raise UsageError("--solver is missing: its test net scores the decomposed nets")
        return Evaluator(
            file,
            device=self.device,
            cache=scores,
            budget=self.data_budget << 20,
            workers=self.workers,
            allow_python_layers=self.allow_python_layers,
            teacher=self.teacher,
            tell=self.tell.warn,
        )

    def training_data(self, batches: int, seed: int | None = None) -> TrainingData:
        """So many batches of the solver's data or the net's own. Raises ForceregError for a wrong solver."""
        # what the scorer has warned of isn't told again
        warn = self.tell.warn if self.scorer is None else self.scorer.warn
        options = (self.device, self.data_budget << 20, self.workers, self.allow_python_layers, warn)
        # a sweep's runs have solvers of their own
        solver = self.scorer.solver if self.solver is None and self.scorer is not None else self.solver_file
        return TrainingData(batches, solver, *options, seed=seed)

    # -- read and prepare

    def open(self, snapshot: StrPath | Any, rules: LayerRules | None = None) -> Opened:
        """The net of a snapshot, ready to be decomposed; `rules`: of single layers. Raises ForceregError."""
        # before anything is read: what doesn't go together costs no time
        selection, solver = self.selection(rules), self.solver_file
        read = read_net_of(snapshot, self.model, self.input_shapes, self.tell.warn)
        return self.prepared(read, selection, solver)

    def prepared(self, read: ReadNet, selection: Selection, solver: SolverFile | None) -> Opened:
        """A net that was read, ready to be decomposed. Raises ForceregError."""
        # the solver's test state decides which layers the TEST net has, as in training
        tested = solver and next(iter(solver.message.test_state), None)
        # as the run had them, for data that isn't here
        known = read.model.input_shapes
        found = accounts(read.file, self.input_shapes, known, read.root, self.allow_python_layers, tested)
        return Opened(read, self._prepared(read, found.shapes, replace(selection, state=found.state)), found)

    def reopened(self, opened: Opened) -> Opened:
        """A net that others of these options opened, read once for all. Raises ForceregError."""
        selection = replace(self.selection(), state=opened.accounts.state)
        return replace(opened, prepared=self._prepared(opened.read, opened.accounts.shapes, selection))

    def _prepared(self, read: ReadNet, shapes: Shapes | None, selection: Selection) -> Prepared:
        if self.data_aware is None:
            return prepare(read.file, read.model.layers, shapes, selection)
        data = self.training_data(self.data_aware)
        return prepare_aware(read.file, read.model.layers, shapes, selection, data)


def nothing(snapshot: StrPath | Any, file: NetFile, skipped: Mapping[str, str], hint: str = "") -> ForceregError:
    """The error for a net of which no layer is decomposed; `hint`: how they would be."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no convolution"
    place = f"{snapshot}: " if is_path(snapshot) else ""
    return ForceregError(f"{place}nothing to decompose in {file.name} ({reasons}){hint and f'; {hint}'}")
