"""Curves of a run, read from its log: Caffe's glog lines (its own or ours) or our JSON events."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError

_LINE = re.compile(r"^[IWEF]\d{4}(?:\d{4})? \d\d:\d\d:\d\d\.\d+\s+\d+ [^\]]*\] (.*)$")
_NUMBER = r"([-+]?(?:nan|inf|[\d.]+(?:[eE][-+]?\d+)?))"
_LOSS = re.compile(rf"^Iteration (\d+)(?: \(.*?\))?, loss = {_NUMBER}$")
_RATE = re.compile(rf"^Iteration (\d+), lr = {_NUMBER}$")
_RANK = re.compile(r"^Iteration (\d+), rank of (.+) = (\d+)(?: \(was .*)?$")
_TEST = re.compile(r"^Iteration (\d+), Testing net \(#(\d+)\)$")
_OUTPUT = re.compile(rf"^\s+(Train|Test) net output #(\d+): (\S+) = {_NUMBER}(?: \(\*.*)?$")
_TEST_LOSS = re.compile(rf"^Test loss: {_NUMBER}$")


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

    Raises ForceregError if it can't be read or holds no curve.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode(errors="replace").splitlines()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ForceregError(f"{path}: cannot be read ({reason}); correct the path") from error
    run = Run(name or path.stem)
    is_json = next((line.lstrip().startswith("{") for line in lines if line.strip()), False)
    for curve, iteration, value in (_json_points if is_json else _glog_points)(lines, str(path)):
        run.add(curve, iteration, value)
    several = {name for name in run.curves if f"{name}[1]" in run.curves}
    run.curves = {f"{name}[0]" if name in several else name: curve for name, curve in run.curves.items()}
    if not run.curves:
        raise ForceregError(f"{path}: holds no line like 'Iteration 100, loss = 0.5'; expected a training log")
    return run


Points = Iterator[tuple[str, int, float]]


def _glog_points(lines: list[str], path: str) -> Points:
    iteration, prefix, seen = 0, "test ", Counter[str]()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        text = match[1]
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
        elif found := _OUTPUT.match(text):
            if found[2] == "0":
                seen.clear()
            part = "train output " if found[1] == "Train" else prefix
            yield _element(part + found[3], seen), iteration, float(found[4])


def _element(name: str, seen: Counter[str]) -> str:
    """`name`, with its index where it has been `seen` before: elements of one blob all have its name."""
    seen[name] += 1
    return f"{name}[{seen[name] - 1}]" if seen[name] > 1 else name


def _prefix(net: int) -> str:
    return f"test #{net} " if net else "test "


def _json_points(lines: list[str], path: str) -> Points:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            if number == len(lines):
                return  # the line that a run was writing when it ended
            raise ForceregError(f"{path}:{number}: is no JSON object; expected what --log-json writes") from None
        try:
            yield from _event_points(event)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ForceregError(f"{path}:{number}: is no event; expected what --log-json writes") from None


def _event_points(event: dict[str, Any]) -> Points:
    kind, iteration = event.get("event"), int(event.get("iteration", 0))
    if kind in ("train", "final"):
        yield "train loss", iteration, float(event["loss"])
    if kind == "rate":
        yield "lr", iteration, float(event["rate"])
    if kind in ("train", "test"):
        part = "train output " if kind == "train" else _prefix(int(event["net"]))
        seen = Counter[str]()
        for output in event["outputs"]:
            yield _element(part + output["name"], seen), iteration, float(output["value"])
    if kind == "ranks":
        for layer in event["layers"]:
            yield f"{layer['layer']} rank", iteration, float(layer["rank"])
    if kind == "force":
        for layer in event["layers"]:
            for name in layer:
                if name != "layer":
                    yield f"{layer['layer']} {name}", iteration, float(layer[name])
