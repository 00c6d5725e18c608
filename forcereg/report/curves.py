"""Curves of a run, read from its log: Caffe's glog lines (its own or ours) or our JSON events."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.report.lines import lines

_LINE = re.compile(r"^[IWEF]\d{4}(?:\d{4})? \d\d:\d\d:\d\d\.\d+\s+\d+ [^\]]*\] (.*)$")
_NUMBER = r"([-+]?(?:nan|inf|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))"
_AT = r"^Iteration ([0-9]{1,10})"
_LOSS = re.compile(rf"{_AT}(?: \(.*?\))?, loss = {_NUMBER}$")
_RATE = re.compile(rf"{_AT}, lr = {_NUMBER}$")
_RANK = re.compile(rf"{_AT}, rank of (.+) = ([0-9]{{1,10}})(?: \(was .*)?$")
_TEST = re.compile(rf"{_AT}, Testing net \(#([0-9]{{1,10}})\)$")
_OUTPUT = re.compile(rf"^\s+(Train|Test) net output #([0-9]+): (\S+) = {_NUMBER}(?: \(\*.*)?$")
_TEST_LOSS = re.compile(rf"^Test loss: {_NUMBER}$")

LAST = 2**31 - 1
"""Iterations are Caffe's int."""
LARGEST = 3.5e38
"""Values are float32's; what is beyond is infinite."""
MANY = 40
"""Elements of one blob that have a curve each; of more their mean, least and most have one."""
MOST = 2000
"""Curves of a run."""
LINE = 1 << 16
"""Characters of a glog line at most, which keeps its own ones to half of that."""


@dataclass
class Curve:
    """Values by iteration, in ascending order."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def cut(self, iteration: int) -> None:
        """Drops the points from `iteration` on."""
        while self.iterations and self.iterations[-1] >= iteration:
            self.iterations.pop()
            self.values.pop()

    def add(self, iteration: int, value: float) -> None:
        """Appends a point in place of those from `iteration` on."""
        self.cut(iteration)
        self.iterations.append(iteration)
        self.values.append(value)


@dataclass
class Run:
    """One log. Curves are called "train loss", "test accuracy", "test #1 accuracy", "lr", "conv1 rank", ..."""

    name: str
    curves: dict[str, Curve] = field(default_factory=dict)
    iteration: int = 0
    remarks: list[str] = field(default_factory=list)
    """What of the log isn't drawn, a line each."""

    def add(self, name: str, iteration: int, value: float) -> None:
        """Appends a point to the curve called `name`; one of an iteration before the last is of a run started again."""
        if iteration < self.iteration:
            for curve in self.curves.values():
                curve.cut(iteration)
            self.curves = {known: curve for known, curve in self.curves.items() if curve.values}
        self.iteration = iteration
        self.curves.setdefault(name, Curve()).add(iteration, value)


def read_run(path: str | Path, name: str | None = None) -> Run:
    """The curves of a log file, glog lines or JSON lines by its content, also compressed by gzip.

    Raises ForceregError if it can't be read, or holds no curve or more than `MOST`.
    """
    path = Path(path)
    run, blobs = Run(name or path.stem), dict[str, int]()
    source = lines(path)
    first = next((line for line in source if line.strip()), "")
    reader = _json_points if first.lstrip().startswith("{") else _glog_points
    for curve, iteration, value in reader(itertools.chain([first], source), str(path), blobs):
        if 0 <= iteration <= LAST:
            run.add(curve, iteration, math.copysign(math.inf, value) if abs(value) > LARGEST else value)
        if len(run.curves) > MOST:
            raise ForceregError(f"{path}: has more than {MOST:,} curves, which no picture can show")
    _name_elements(run, blobs)
    if not run.curves:
        raise ForceregError(f"{path}: holds no line like 'Iteration 100, loss = 0.5'; expected a training log")
    return run


def _name_elements(run: Run, blobs: dict[str, int]) -> None:
    """The first of several elements gets its number; those of blobs with too many (name -> how many) go."""
    several = {name for name in run.curves if f"{name}[1]" in run.curves}
    run.curves = {f"{name}[0]" if name in several else name: curve for name, curve in run.curves.items()}
    for name, count in blobs.items():
        for number in range(MANY):
            run.curves.pop(f"{name}[{number}]", None)
        run.remarks.append(f"{run.name}: '{name}' has {count:,} elements; drawn are their mean, least and most")


Points = Iterator[tuple[str, int, float]]


class _Outputs:
    """The outputs of one test or iteration: elements of one blob all have its name."""

    def __init__(self, blobs: dict[str, int]) -> None:
        self._blobs = blobs
        self._seen: dict[str, _Spread] = {}
        self._iteration = 0

    def point(self, name: str, iteration: int, value: float) -> Points:
        """The point of one more, with its index where its name has been there before."""
        self._iteration = iteration
        spread = self._seen.setdefault(name, _Spread())
        spread.add(value)
        if spread.count <= MANY:
            yield (f"{name}[{spread.count - 1}]" if spread.count > 1 else name), iteration, value

    def end(self) -> Points:
        """The mean, least and most of those that are too many."""
        for name, spread in self._seen.items():
            if spread.count > MANY:
                self._blobs[name] = max(spread.count, self._blobs.get(name, 0))
                yield f"{name} mean", self._iteration, spread.total / spread.count
                yield f"{name} least", self._iteration, spread.least
                yield f"{name} most", self._iteration, spread.most
        self._seen.clear()


@dataclass
class _Spread:
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)


def _glog_points(source: Iterable[str], path: str, blobs: dict[str, int]) -> Points:
    iteration, prefix, outputs = 0, "test ", _Outputs(blobs)
    for line in source:
        match = _LINE.match(line) if len(line) <= LINE else None
        if match is None:
            continue
        text = match[1]
        if found := _OUTPUT.match(text):
            if found[2] == "0":
                yield from outputs.end()
            part = "train output " if found[1] == "Train" else prefix
            yield from outputs.point(part + found[3], iteration, float(found[4]))
            continue
        yield from outputs.end()
        if found := _LOSS.match(text):
            iteration = int(found[1])
            yield "train loss", iteration, float(found[2])
        elif found := _RATE.match(text):
            yield "lr", int(found[1]), float(found[2])
        elif found := _RANK.match(text):
            yield f"{found[2]} rank", int(found[1]), float(found[3])
        elif found := _TEST.match(text):
            iteration, prefix = int(found[1]), _prefix(int(found[2]))
        elif found := _TEST_LOSS.match(text):
            yield f"{prefix}total loss", iteration, float(found[1])
    yield from outputs.end()


def _prefix(net: int) -> str:
    return f"test #{net} " if net else "test "


def _json_points(source: Iterable[str], path: str, blobs: dict[str, int]) -> Points:
    bad = 0
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        if bad:  # the last line may be the one that a run was writing when it ended, but this one isn't that
            raise ForceregError(f"{path}:{bad}: is no JSON object; expected what --log-json writes")
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            bad = number
            continue
        try:
            yield from list(_event_points(event, blobs))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise ForceregError(f"{path}:{number}: is no event; expected what --log-json writes") from None


def _event_points(event: dict[str, Any], blobs: dict[str, int]) -> Points:
    kind, iteration = event.get("event"), int(event.get("iteration", 0))
    if kind in ("train", "final"):
        yield "train loss", iteration, float(event["loss"])
    if kind == "rate":
        yield "lr", iteration, float(event["rate"])
    if kind in ("train", "test"):
        part = "train output " if kind == "train" else _prefix(int(event["net"]))
        outputs = _Outputs(blobs)
        for output in event["outputs"]:
            yield from outputs.point(part + output["name"], iteration, float(output["value"]))
        yield from outputs.end()
    if kind == "ranks":
        for layer in event["layers"]:
            yield f"{layer['layer']} rank", iteration, float(layer["rank"])
    if kind == "force":
        for layer in event["layers"]:
            for name in layer:
                if name != "layer":
                    yield f"{layer['layer']} {name}", iteration, float(layer[name])
