"""From a solver file to its nets: which files, which phase rules, where paths start."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from forcereg import registry
from forcereg.errors import ForceregError, storable
from forcereg.schema import TEST, TRAIN, SolverParameter
from forcereg.schema.rules import OF_SOLVER, Title, net_state
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.survey import Tell
from forcereg.schema.text import NetFile, SolverFile, net_from_message, parse_solver, read_net, read_solver, to_text
from forcereg.solver import policy
from forcereg.solver.regularizers.decay import check_regularization
from forcereg.system.arguments import wrong
from forcereg.system.paths import find_root, resolve, snapshot_prefix

TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


@dataclass(frozen=True)
class NetChoice:
    """A net file, the state that its layers' rules are matched against, and what errors call the net."""

    file: NetFile
    state: Any
    title: Title = OF_SOLVER

    def spec(self, root: Path) -> NetSpec:
        """The layers that the state keeps (see `build_spec`)."""
        return build_spec(self.file, self.state, root, self.title)


@dataclass(frozen=True)
class SolverSpecs:
    """What a solver trains and tests, and the folder its relative paths start from."""

    root: Path
    train: NetSpec
    tests: tuple[NetSpec, ...]


def solver_file(solver: Any) -> SolverFile:
    """A path, prototxt text (anything with a line break, or a colon if no such file exists) or message, read."""
    if isinstance(solver, SolverFile):
        return solver
    # through its text: the message stays the caller's, and errors name lines as for a file
    if isinstance(solver, SolverParameter):
        return parse_solver(to_text(solver), "<SolverParameter>")
    if isinstance(solver, str) and ("\n" in solver or ":" in solver) and not os.path.exists(solver):
        return parse_solver(solver)
    if not isinstance(solver, str | os.PathLike):
        raise wrong("solver", solver, "the path of a prototxt, its text or a SolverParameter")
    return read_solver(os.fspath(solver))


def _check_type(p: Any, name: str) -> None:
    problem = registry.solver_type.get(p.type, name)().problem(p)
    if problem:
        raise ForceregError(f"{name}: {problem}")


def problems(p: Any, name: str) -> Iterator[ForceregError]:
    """What is wrong with a solver's own settings; `name` is its file."""
    checks: list[Callable[[], Any]] = [lambda: _check_type(p, name)]
    checks += [partial(registry.regularizer.get(one).check, p, name) for one in registry.regularizer]
    if p.weight_decay:  # else Caffe never looks at the type
        checks.append(lambda: check_regularization(p.regularization_type, name))
    for check in checks:
        try:
            check()
        except ForceregError as error:
            yield error
    yield from policy.problems(p, name)
    for field, least in (("average_loss", 1), ("iter_size", 1), ("max_iter", 0), ("snapshot", 0)):
        if getattr(p, field) < least:
            yield ForceregError(f"{name}: {field} is {getattr(p, field)}; expected >= {least}")
    for field, value in p.ListFields():
        if (
            isinstance(value, float)
            and not math.isfinite(value)
            and (field.name, value) != ("clip_gradients", math.inf)
        ):
            yield ForceregError(f"{name}: {field.name} is {value}; expected a finite number")
    for field in ("net", "train_net", "test_net", "snapshot_prefix", "weights"):
        if "\0" in "".join(getattr(p, field)):
            yield ForceregError(f"{name}: {field} holds a NUL character, which no path has; correct it")
    if not 0 <= p.ema_decay < 1:
        yield ForceregError(f"{name}: ema_decay is {p.ema_decay:g}; expected 0 for none, or below 1, as in 0.999")
    if min(p.test_iter, default=0) < 0:
        yield ForceregError(f"{name}: test_iter is {min(p.test_iter)}; expected >= 0")


def solver_specs(file: SolverFile, level: int | None = None, stages: Sequence[str] = ()) -> SolverSpecs:
    """The nets that the solver names, for training and testing. Raises ForceregError."""
    root = solver_root(file)
    train, *tests = [one.spec(root) for one in solver_nets(file, root, level, stages)]
    return SolverSpecs(root, train, tuple(tests))


def solver_nets(
    file: SolverFile, root: Path, level: int | None = None, stages: Sequence[str] = ()
) -> tuple[NetChoice, ...]:
    """The net that the solver trains, then those that it tests. Raises ForceregError."""
    chosen = trained_net(file, root, level, stages)
    tests = tested_nets(file, root, chosen.file)
    return (replace(chosen, title=Title(solver=True, several=bool(tests))), *tests)


def solver_root(file: SolverFile) -> Path:
    """The folder that the solver's relative paths start from."""
    if file.root is not None:
        return file.root
    p = file.message
    named = p.net or p.train_net or (p.test_net[0] if p.test_net else "")
    return find_root(named, None if file.name.startswith("<") else file.name)


def trained_net(
    file: SolverFile, root: Path, level: int | None = None, stages: Sequence[str] = (), tell: Tell | None = None
) -> NetChoice:
    """The net that the solver trains. Raises ForceregError.

    `level` and `stages` go to its state, as Caffe's --level and --stage do; `tell`: see forcereg.schema.text.parse_net.
    """
    p = file.message
    given = [field for field in TRAIN_FIELDS if p.HasField(field)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ForceregError(f"{file.name}: expected exactly one of {', '.join(TRAIN_FIELDS)}; found {found}")
    train_file = _net_file(file, given[0], root, tell)
    extra = [p.train_state] if p.HasField("train_state") else []
    state = net_state(TRAIN, train_file.message.state, *extra)
    if level is not None:
        state.level = level
    state.stage.extend(stage for stage in stages if stage)
    return NetChoice(train_file, state)


def complete_prefix(file: SolverFile, root: Path) -> None:
    """Gives a snapshot_prefix that is a folder the solver file's stem as its last part, as Caffe does."""
    written = file.message.snapshot_prefix
    if written and not file.name.startswith("<"):
        completed = snapshot_prefix(root, written, file.name)
        if completed != resolve(root, written):
            file.message.snapshot_prefix = storable(Path(written) / completed.name)


def _net_file(file: SolverFile, field: str, root: Path, tell: Tell | None) -> NetFile:
    value = getattr(file.message, field)
    if isinstance(value, str):
        path = resolve(root, value)
        if not os.path.exists(path):
            raise ForceregError(
                f"{file.name}: {field} '{value}' does not exist under {root} "
                "(the working directory or a folder above the solver); correct the path or change folder"
            )
        return read_net(value if root == Path.cwd() else path, tell)  # in errors as short as it was written
    if field == "net_param" and file.inline is not None:
        return file.inline
    return net_from_message(value, f"{file.name}: {field}")


def tested_nets(file: SolverFile, root: Path, train_file: NetFile, tell: Tell | None = None) -> tuple[NetChoice, ...]:
    """The nets that the solver tests; `train_file` holds the one of `net` or `net_param`. Raises ForceregError.

    `tell`: see forcereg.schema.text.parse_net.
    """
    p = file.message
    files = [net_from_message(net, f"{file.name}: test_net_param") for net in p.test_net_param]
    for value in p.test_net:
        path = resolve(root, value)
        if not os.path.exists(path):
            raise ForceregError(f"{file.name}: test_net '{value}' does not exist under {root}; correct the path")
        files.append(read_net(value if root == Path.cwd() else path, tell))
    # Caffe's order: messages, then files of their own, then the solver's net for each test_iter that is left
    generic = train_file if p.HasField("net") or p.HasField("net_param") else None
    left = len(p.test_iter) - len(files)
    if left < 0 or (left > 0 and generic is None):
        raise ForceregError(
            f"{file.name}: has {len(p.test_iter)} test_iter entries for {len(files)} test nets; give one each"
        )
    if generic is not None:
        files += [generic] * left
    if files and p.test_interval <= 0:
        raise ForceregError(f"{file.name}: test nets need test_interval > 0; found {p.test_interval}")
    if p.test_state and len(p.test_state) != len(files):
        raise ForceregError(
            f"{file.name}: has {len(p.test_state)} test_state entries for {len(files)} test nets; give none or one each"
        )
    # none, or one each: Caffe takes no other count
    states = list(p.test_state) or [None] * len(files)
    return tuple(
        NetChoice(
            net,
            net_state(TEST, net.message.state, *([state] if state is not None else [])),
            Title(solver=True, number=number, several=True),
        )
        for number, (net, state) in enumerate(zip(files, states, strict=True))
    )
