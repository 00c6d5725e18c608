"""What frontier asks for: several nets, several methods, several rules for the ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.lowrank_options import LayerOptions, fractions, gathered
from forcereg.commands.lowrank_rules import flag, rule_of
from forcereg.errors import UsageError
from forcereg.lowrank.rules import Rule

if TYPE_CHECKING:
    from forcereg.study.opened import Opened, Opening

SHARES = "0.15,0.2,0.3,0.4,0.5,0.7"


@dataclass(frozen=True)
class Aims:
    """What the options of `aim_options` say."""

    max_macs: str | None
    max_params: str | None
    error: str | None
    ranks: tuple[str, ...]
    even_if_dearer: bool

    def rules(self) -> dict[str, Rule]:
        """Name -> a rule of the command `decompose` with one value. Raises UsageError."""
        asked: dict[str, tuple[str, Any]] = {f"ranks {ranks}": ("ranks", ranks) for ranks in self.ranks}
        given = {"max_macs": self.max_macs, "max_params": self.max_params, "error": self.error}
        if not asked and all(text is None for text in given.values()):
            given["max_macs"] = SHARES
        for field, text in given.items():
            asked |= {f"{flag(field)[2:]} {one:g}": (field, one) for one in shares(flag(field), text)}
        return {name: rule_of(*one) for name, one in asked.items()}


aim_options = gathered("aims", Aims, [
    click.option("--max-macs", metavar="A,B,..",
                 help=f"Shares of the whole net's MACs to aim at.  [default without another aim: {SHARES}]"),
    click.option("--max-params", metavar="A,B,..", help="Shares of its parameters."),
    click.option("--error", metavar="A,B,..", help="Bounds on each layer's relative squared error."),
    click.option("--ranks", multiple=True, metavar="A,B,..",
                 help="One rank for each layer that is decomposed, in the net file's order; repeatable."),
    click.option("--even-if-dearer", is_flag=True,
                 help="Decompose layers by --error even where the chain costs no less than the layer."),
])  # fmt: skip


def shares(option: str, text: str | None) -> list[float]:
    """Numbers from 0 to 1 with commas, none if the option isn't given. Raises UsageError for anything else."""
    return [] if text is None else fractions(option, text, "numbers", "0.2,0.5")


def labels_of(snapshots: Sequence[str], labels: str | None) -> list[str]:
    """The nets' names: those given, or what their paths differ in. Raises UsageError."""
    from forcereg.net.made import stem

    paths = [Path(os.path.abspath(snapshot)) for snapshot in snapshots]
    if twice := [given for at, given in enumerate(snapshots) if paths[at] in paths[:at]]:
        raise UsageError(f"SNAPSHOT {twice[0]} is given twice")
    if labels is not None:
        names = [name.strip() for name in labels.split(",")]
        if len(names) != len(snapshots) or len(set(names)) < len(names) or not all(names):
            raise UsageError(f"--labels is '{labels}'; expected {len(snapshots)} different names with commas")
        return names
    parts = [(*path.parent.parts, stem(path)) for path in paths]
    head = min(alike(parts), *(len(own) - 1 for own in parts))
    tail = alike(own[::-1] for own in parts)
    for end in (tail, 0):
        names = ["/".join(own[head : len(own) - end]) for own in parts]
        if all(names) and len(set(names)) == len(names):
            return names
    return list(snapshots)


def alike(paths: Iterable[tuple[str, ...]]) -> int:
    """How many parts all begin with."""
    return len(list(takewhile(lambda same: len(set(same)) == 1, zip(*paths, strict=False))))


def opened_nets(
    snapshots: Sequence[str], labels: Sequence[str], layers: LayerOptions, tell: Callable[[str], None]
) -> dict[tuple[str, str], Opened]:
    """Every net by every method: label and method -> the net. What a method can't take is told.

    Raises ForceregError, also for a net that no method can take.
    """
    from forcereg.study.opened import nothing

    opened: dict[tuple[str, str], Opened] = {}
    methods = by_method(layers, tell)
    for label, snapshot in zip(labels, snapshots, strict=True):
        read: Opened | None = None
        for own in methods:
            read = own.open(snapshot) if read is None else own.reopened(read)
            for name, reason in read.prepared.skipped.items():
                tell(f"{label}, {own.method}: {name} stays whole: {reason}")
            if read.prepared.candidates:
                opened[label, own.method] = read
        if read is not None and not any(of == label for of, _ in opened):
            raise nothing(snapshot, read.prepared.file, read.prepared.skipped)
    return opened


def by_method(layers: LayerOptions, tell: Callable[[str], None]) -> list[Opening]:
    """The options once for each method of --method A,B; --data-aware for those only that can. Raises UsageError."""
    from forcereg.lowrank.ladder import aware
    from forcereg.study.opened import MIXED

    methods = list(dict.fromkeys(method.strip() for method in layers.method.split(",")))
    if MIXED in methods:
        raise UsageError("--method mixed has one rank for each layer and so no curve; name methods, as in pca,vh")
    able = [method for method in methods if method in aware()]
    if layers.data_aware is None or not able:
        return [replace(layers, method=method).opening() for method in methods]
    for method in methods:
        if method not in able:
            tell(f"{method}: minimises the weights' error; --data-aware holds for {' and '.join(able)} only")
    aims = {method: layers.data_aware if method in able else None for method in methods}
    return [replace(layers, method=method, data_aware=batches).opening() for method, batches in aims.items()]
