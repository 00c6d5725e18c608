"""Several nets side by side: what to call them, and each of them opened for each of several methods."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from forcereg.errors import UsageError
from forcereg.lowrank.ladder import aware
from forcereg.net.made import stem
from forcereg.study.opened import MIXED, Opened, Opening, nothing
from forcereg.system.paths import StrPath

Key = tuple[str, str]
"""A net's name and the method by which it is to be decomposed."""


def labels_of(snapshots: Sequence[StrPath], labels: str | Sequence[str] | None) -> list[str]:
    """The nets' names: those given, as a list or "a,b", or what their paths differ in. Raises UsageError."""
    # one file may be written in several ways
    paths = [Path(os.path.abspath(snapshot)) for snapshot in snapshots]
    if twice := [given for at, given in enumerate(snapshots) if paths[at] in paths[:at]]:
        raise UsageError(f"SNAPSHOT {twice[0]} is given twice")
    if labels is not None:
        names = [name.strip() for name in (labels.split(",") if isinstance(labels, str) else labels)]
        if len(names) != len(snapshots) or len(set(names)) < len(names) or not all(names):
            raise UsageError(f"--labels is '{','.join(names)}'; expected {len(snapshots)} different names with commas")
        return names
    parts = [(*path.parent.parts, stem(path)) for path in paths]
    # a path's last part stays, also where one path is the beginning of another
    head = min(alike(parts), *(len(own) - 1 for own in parts))
    tail = alike(own[::-1] for own in parts)
    # without what all end in, where that leaves each a name of its own
    for end in (tail, 0):
        names = ["/".join(own[head : len(own) - end]) for own in parts]
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(snapshot) for snapshot in snapshots]


def alike(paths: Iterable[tuple[str, ...]]) -> int:
    """How many parts all begin with."""
    return len(list(takewhile(lambda same: len(set(same)) == 1, zip(*paths, strict=False))))


def opened_nets(snapshots: Mapping[str, StrPath], asked: Opening, methods: Sequence[str]) -> dict[Key, Opened]:
    """Every net, by its name, for every method. What a method can't take is told.

    Raises ForceregError, also for a net that no method can take.
    """
    opened: dict[Key, Opened] = {}
    each = by_method(asked, methods)
    for label, snapshot in snapshots.items():
        read: Opened | None = None
        for own in each:
            read = own.open(snapshot) if read is None else own.reopened(read)  # weights are read once for all
            for name, reason in read.prepared.skipped.items():
                asked.tell.note(f"{label}, {own.method}: {name} stays whole: {reason}")
            if read.prepared.candidates:
                opened[label, own.method] = read
        if read is not None and not any(of == label for of, _ in opened):
            raise nothing(snapshot, read.prepared.file, read.prepared.skipped)
    return opened


def by_method(asked: Opening, methods: Sequence[str]) -> list[Opening]:
    """What is asked for once for each method; `data_aware` for those only that can be. Raises UsageError."""
    methods = list(dict.fromkeys(methods))
    if MIXED in methods:
        raise UsageError("--method mixed has one rank for each layer and so no curve; name methods, as in pca,vh")
    able = [method for method in methods if method in aware()]
    if asked.data_aware is None or not able:
        return [replace(asked, method=method) for method in methods]
    for method in methods:
        if method not in able:
            asked.tell.note(f"{method}: minimises the weights' error; --data-aware holds for {' and '.join(able)} only")
    aims = {method: asked.data_aware if method in able else None for method in methods}
    return [replace(asked, method=method, data_aware=batches) for method, batches in aims.items()]
