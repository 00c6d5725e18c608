"""Curves of a run, read from its log: Caffe's glog lines (its own or ours) or our JSON events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError

_LINE = re.compile(r"^[IWEF]\d{4}(?:\d{4})? \d\d:\d\d:\d\d\.\d+\s+\d+ [^\]]*\] (.*)$")
_NUMBER = r"([-+]?(?:nan|inf|[\d.]+(?:[eE][-+]?\d+)?))"
_LOSS = re.compile(rf"^Iteration (\d+)(?: \(.*?\))?, loss = {_NUMBER}$")
_RATE = re.compile(rf"^Iteration (\d+), lr = {_NUMBER}$")
_TEST = re.compile(r"^Iteration (\d+), Testing net \(#(\d+)\)$")
_OUTPUT = re.compile(rf"^\s+(Train|Test) net output #\d+: (\S+) = {_NUMBER}(?: \(\*.*)?$")
_TEST_LOSS = re.compile(rf"^Test loss: {_NUMBER}$")


@dataclass
class Curve:
    """Values by iteration, in ascending order."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, iteration: int, value: float) -> None:
        """Appends a point; points from `iteration` on are of a run that was started again, and go."""
        while self.iterations and self.iterations[-1] >= iteration:
            self.iterations.pop()
            self.values.pop()
        self.iterations.append(iteration)
        self.values.append(value)


@dataclass
class Run:
    """One log. Curves are called "train loss", "test accuracy", "test #1 accuracy", "lr", "conv1 rank", ..."""

    name: str
    curves: dict[str, Curve] = field(default_factory=dict)

    def add(self, name: str, iteration: int, value: float) -> None:
        """Appends a point to the curve called `name`."""
        self.curves.setdefault(name, Curve()).add(iteration, value)


def read_run(path: str | Path, name: str | None = None) -> Run:
    """The curves of a log file, glog lines or JSON lines by its content.

    Raises ForceregError if it can't be read or holds no curve.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ForceregError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    run = Run(name or path.stem)
    is_json = next((line.lstrip().startswith("{") for line in lines if line.strip()), False)
    for curve, iteration, value in (_json_points if is_json else _glog_points)(lines, str(path)):
        run.add(curve, iteration, value)
    if not run.curves:
        raise ForceregError(f"{path}: holds no line like 'Iteration 100, loss = 0.5'; expected a training log")
    return run


Points = Iterator[tuple[str, int, float]]


def _glog_points(lines: list[str], path: str) -> Points:
    iteration, prefix = 0, "test "
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
        elif found := _TEST.match(text):
            iteration, prefix = int(found[1]), _prefix(int(found[2]))
        elif found := _TEST_LOSS.match(text):
            yield f"{prefix}total loss", iteration, float(found[1])
        elif found := _OUTPUT.match(text):
            part = "train output " if found[1] == "Train" else prefix
            yield f"{part}{found[2]}", iteration, float(found[3])


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
        yield from _event_points(event)


def _event_points(event: dict[str, Any]) -> Points:
    kind, iteration = event.get("event"), int(event.get("iteration", 0))
    if kind in ("train", "final"):
        yield "train loss", iteration, float(event["loss"])
    if kind == "rate":
        yield "lr", iteration, float(event["rate"])
    if kind in ("train", "test"):
        part = "train output " if kind == "train" else _prefix(int(event["net"]))
        for output in event["outputs"]:
            yield part + output["name"], iteration, float(output["value"])
    if kind == "force":
        for layer in event["layers"]:
            for name in layer.keys() - {"layer"}:
                yield f"{layer['layer']} {name}", iteration, float(layer[name])
