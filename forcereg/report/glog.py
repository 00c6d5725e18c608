"""Caffe's log lines, glog's: of Caffe of any age, of NVIDIA's, and ours, also with something in front of them.

Containers (`web_1  | `), their orchestrators, launchers of several processes (`[1,0]<stderr>:`) and CI put a name or
a time there. Of several processes in one log the first one's lines count, and those that go on where it ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forcereg.report.points import MOST, Outputs, Point, Run
from forcereg.schema.scan import shown

LINE = 1 << 16
"""Characters of a line at most."""

# NVIDIA's Caffe adds a rank behind the bracket, as in `[0.0]`
_LINE = re.compile(
    r"(?<![A-Za-z0-9])[IWEF]\d{4}(?:\d{4})? \d\d:\d\d:\d\d\.\d+\s+\d+ [^\]]*\](?: +\[(\d+(?:\.\d+)*)\])? +(.*)$"
)
# as C++ writes them, on Windows 1.#INF and 1.#QNAN
_NUMBER = r"([-+]?(?:nan|inf|[0-9]\.#[A-Z]+[0-9]*|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))"
_AT = r"Iteration ([0-9]{1,10})"
_LOSS = re.compile(rf"{_AT}(?: \(.*?\))?(?:, [0-9./]+ep)?, loss = {_NUMBER}(?:[, ].*)?$")
_RATE = re.compile(rf"{_AT}, lr = {_NUMBER}(?:[, ].*)?$")
_RANK = re.compile(rf"{_AT}, rank of (.+) = ([0-9]{{1,10}})(?: \(was .*)?$")
_TEST = re.compile(rf"{_AT}, Testing net(?: \(#([0-9]{{1,10}})\))?$")
_OUTPUT = re.compile(rf"(Train|Test) net output #([0-9]+): (\S+) = {_NUMBER}(?: \(\*.*)?$")
_BEST = re.compile(rf"{_AT}, best (\S+) = {_NUMBER}(?: \(was [^)]*\))?(?:, kept as (.*))?$")
_ENOUGH = re.compile(rf"{_AT}, stopping early: (.*)$")
_SCORE = re.compile(rf"Test (score #[0-9]+): {_NUMBER}$")
_TEST_LOSS = re.compile(rf"Test loss: {_NUMBER}$")

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d(?:[.,]\d+)?|(?<=\d)Z|[+-]\d\d:?\d\d\b|\[ *\d+\.\d+s?\]"
    r"|\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b(?: +\d{1,2}\b)?"
)


def read_glog(source: Iterable[str], run: Run, blobs: dict[str, int], path: Path) -> None:
    """Adds the curves of a log's lines to `run`, and to `blobs` how many elements those have that are summed up.

    Raises ForceregError for too many curves.
    """
    found = _Processes(run.name, blobs, path)
    for line in source:
        # at the beginning first, where most logs have it: a search tries every place of a line
        match = (_LINE.match(line) or _LINE.search(line)) if len(line) <= LINE else None
        if match is not None:
            text = _COLOR.sub("", match[2]) if "\x1b" in match[2] else match[2]
            found.take(line[: match.start()], text, match[1])
    found.finish(run)


def prefix_of(net: int) -> str:
    """What the names of a test net's curves begin with."""
    return f"test #{net} " if net else "test "


class _Process:
    """What one process has written: lines number `first` to `last` of a log's, which make the curves of `run`."""

    def __init__(self, name: str, blobs: dict[str, int], path: Path, number: int) -> None:
        self.run, self.first, self.last = Run(name), number, number
        self.rank: str | None = None
        self._path = path
        self._outputs = Outputs(blobs)
        self._iteration, self._prefix = 0, prefix_of(0)

    def take(self, text: str, number: int) -> None:
        """Its next line."""
        self.last = number
        for point in self._points(text):
            self.run.take(point, self._path)

    def end(self) -> None:
        """There is no more."""
        for point in self._outputs.end(self._iteration):
            self.run.take(point, self._path)

    def _points(self, text: str) -> Iterator[Point]:
        outputs = self._outputs
        if found := _OUTPUT.match(text):
            # counted anew: another test's or iteration's begin
            if found[2] == "0":
                yield from outputs.end(self._iteration)
            outputs.add(("train output " if found[1] == "Train" else self._prefix) + found[3], _number(found[4]))
            return
        if found := _SCORE.match(text):
            outputs.add(self._prefix + found[1], _number(found[2]))
            return
        yield from outputs.end(self._iteration)
        if found := _LOSS.match(text):
            self._iteration = int(found[1])
            yield "train loss", self._iteration, _number(found[2])
        elif found := _RATE.match(text):
            yield "lr", int(found[1]), _number(found[2])
        elif found := _RANK.match(text):
            yield f"{found[2]} rank", int(found[1]), float(found[3])
        elif found := _TEST.match(text):
            self._iteration, self._prefix = int(found[1]), prefix_of(int(found[2] or 0))
        elif found := _BEST.match(text):
            self.run.judged(found[2], _number(found[3]), int(found[1]), found[4])
        elif found := _ENOUGH.match(text):
            self.run.stopped(int(found[1]), found[2])
        elif found := _TEST_LOSS.match(text):
            yield f"{self._prefix}total loss", self._iteration, _number(found[1])


@dataclass
class _Processes:
    """The processes of a log, told apart by what stands in front of their lines, but for times."""

    name: str
    blobs: dict[str, int]
    path: Path
    found: dict[str, _Process] = field(default_factory=dict)
    count: int = 0

    def take(self, front: str, text: str, rank: str | None) -> None:
        """One line; a process begins with its first iteration, and of its own ranks the first counts."""
        if front:
            # a process is known by its name, while times change from line to line
            front = " ".join(_TIME.sub("", _COLOR.sub("", front)).split())
        process = self.found.get(front)
        if process is None:
            # what stands in front may differ in every line, as an id does
            if not text.startswith("Iteration ") or len(self.found) >= MOST:
                return
            process = self.found[front] = _Process(self.name, self.blobs, self.path, self.count)
        if rank is not None:
            process.rank = process.rank or rank
            if rank != process.rank:
                return
        self.count += 1
        process.take(text, self.count)

    def finish(self, run: Run) -> None:
        """Gives `run` the first process's curves, and those that go on where it ends."""
        last, others = -1, list[str]()
        for front, process in self.found.items():
            process.end()
            # it began before the one that is drawn had ended: they ran side by side
            if process.first < last:
                others.append(front)
                continue
            last = process.last
            run.go_on(process.run)
        if others:
            more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
            run.remarks.append(
                f"{run.name}: several processes write; the curves are those of '{shown(next(iter(self.found)), 60)}', "
                f"left out is '{shown(others[0], 60)}'{more}"
            )


def _number(text: str) -> float:
    if "#" in text:
        return math.copysign(math.inf if "INF" in text else math.nan, -1 if text.startswith("-") else 1)
    return float(text)


def is_wrapped(line: str) -> bool:
    """Whether it is a line of Docker's own log files, in JSON."""
    return _wrapped(line) is not None


def _wrapped(line: str) -> str | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # our own JSON lines have an event
    text = event.get("log") if isinstance(event, dict) and "event" not in event else None
    return text.rstrip("\r\n") if isinstance(text, str) else None


def unwrapped(source: Iterable[str]) -> Iterator[str]:
    """The lines that those of a log file of Docker hold."""
    for line in source:
        text = _wrapped(line)
        if text is not None:
            yield text
