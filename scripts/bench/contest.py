"""Times contestants in turn, each in a process of its own, so that allocator settings and memory are its own too.

    results = contest([Entrant("plain", "train:baseline", {"net": "lenet"}, turn=20), ...], rounds=9)
    print_times(results, against=("plain",))

An entrant's `target` is "module:function", found on this process's path; called in the child with `options`, the
function gives a callable that runs n iterations (and waits for the device, if there is one). The contestants take
turns of `turn` iterations; every round begins with another one; between turns all sleep on their pipes.
`table.Figure` and `table.write_figures` bring what comes out of it into the common table.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[int], object]
PAUSE = 0.02
"""Seconds before each turn: OpenMP's threads go on spinning for a while after the last parallel loop."""


@dataclass(frozen=True)
class Entrant:
    """A contestant: its name, what makes it, how many iterations it runs at a time, what its environment adds."""

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    turn: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ("torch",)
    """Modules whose memory isn't counted in `Memory.own` and `Memory.private`."""


@dataclass(frozen=True)
class Memory:
    """MiB of a contestant's process at its peak; `own` and `private` are above its `imports` alone.

    `own` counts the files that are mapped (libraries, LMDBs), whose pages the system can take back; `private` doesn't.
    """

    peak: float
    own: float
    private: float


@dataclass(frozen=True)
class Result:
    """Seconds per iteration of each round, and the peak memory where the system tells it."""

    name: str
    seconds: list[float]
    memory: Memory | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ratio(one: Result, other: Result) -> float:
    """Median over median: the figure to report."""
    return one.median / other.median


def paired_ratio(one: Result, other: Result) -> float:
    """Median of the rounds' own ratios: differs from `ratio` where the machine was disturbed."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


class Contestant:
    """An entrant's process. Every failure in it ends the program with one line: its last words."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self._files = contextlib.ExitStack()
        self._errors = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **entrant.environment},
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._files.enter_context(self._process.stdout)
        self._ask({"path": sys.path, **asdict(entrant)})

    def wait(self) -> None:
        """Returns when the contestant is made; several can be under way at once."""
        self._answer()

    def run(self) -> float:
        """Seconds per iteration of one turn."""
        self._ask(self.entrant.turn)
        return float(self._answer()) / self.entrant.turn

    def memory(self) -> Memory | None:
        """Peak memory so far."""
        self._ask(None)
        found = self._answer()
        return None if found is None else Memory(**found)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        self._process.wait()
        self._files.close()

    def _ask(self, question: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # why it has ended is told where the answer is missing
            print(json.dumps(question), file=self._questions, flush=True)

    def _answer(self) -> Any:
        if answer := self._answers.readline():
            return json.loads(answer)
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()] or ["no message"]
        raise SystemExit(f"contestant '{self.entrant.name}' ended with {code}: {said[-1]}")


def contest(
    entrants: Sequence[Entrant], rounds: int, warmup: int = 1, seconds: float = float("inf"), pause: float = PAUSE
) -> list[Result]:
    """All entrants' times over `rounds`, after `warmup` rounds that don't count.

    No further round begins after `seconds`, but three are run. Raises SystemExit, one line, if a contestant fails.
    """
    times: list[list[float]] = [[] for _ in entrants]
    with contextlib.ExitStack() as stack:
        contestants = []
        for entrant in entrants:
            contestants.append(Contestant(entrant))
            stack.callback(contestants[-1].close)
        for one in contestants:
            one.wait()
        started = time.monotonic()
        for number in range(-warmup, rounds):
            if number >= 3 and time.monotonic() - started > seconds:
                break
            for at in range(len(entrants)):
                index = (number + at) % len(entrants)
                time.sleep(pause)
                took = contestants[index].run()
                if number >= 0:
                    times[index].append(took)
        return [Result(one.entrant.name, taken, one.memory()) for one, taken in zip(contestants, times, strict=True)]


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The median seconds of each call; they take turns in this process."""

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    found = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(one) for one in zip(*found, strict=True)]


def print_ratios(one: Result, others: Sequence[Result]) -> None:
    """A line with what `ratio` should be near to on a quiet machine."""
    paired = ", ".join(f"{paired_ratio(one, other):.2f}" for other in others)
    minima = ", ".join(f"{min(one.seconds) / min(other.seconds):.2f}" for other in others)
    names = ", ".join(other.name for other in others)
    print(f"{one.name} / {names}: medians of the rounds' own ratios {paired}; ratios of the minima {minima}")


def print_times(results: Sequence[Result], against: Sequence[str] = (), unit: str = "iteration") -> None:
    """A table: milliseconds, ratios to the results named in `against`, memory."""
    named = {result.name: result for result in results}
    wide = max(map(len, named)) + 2
    columns = "".join(f"{'/ ' + name:>17}" for name in against)
    print(f"{'':{wide}}{'ms/' + unit:>13}{'min':>9}{'max':>9}{columns}{'MiB':>8}{'own':>8}{'private':>9}")
    for result in results:
        line = f"{result.name:{wide}}{result.median * 1e3:13.2f}"
        line += f"{min(result.seconds) * 1e3:9.2f}{max(result.seconds) * 1e3:9.2f}"
        line += "".join(f"{ratio(result, named[name]):17.2f}" for name in against)
        if result.memory:
            line += f"{result.memory.peak:8.0f}{result.memory.own:8.0f}{result.memory.private:9.0f}"
        print(line)


def results_json(results: Sequence[Result]) -> dict[str, Any]:
    """The results for a JSON file: medians, every round, memory."""
    return {result.name: {"median_s": result.median, **asdict(result)} for result in results}


def machine() -> str:
    """What the figures were taken on: processor, threads, torch. Imports torch."""
    import torch

    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    """The CPU's name, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return [*models, platform.machine()][0]


# -- in the child


def status() -> dict[str, int]:
    """KiB of this process by the kernel's names; empty where it doesn't tell."""
    try:
        rows = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[0][:3] in ("VmH", "VmR", "Rss")}


def peak_memory(base: Mapping[str, int], now: Mapping[str, int]) -> dict[str, float] | None:
    """`Memory`'s fields from an earlier and a later `status()`; None if the system doesn't tell enough."""
    if not {"VmHWM", "VmRSS", "RssAnon"} <= {*base} & {*now}:
        return None
    mapped = now["VmRSS"] - now["RssAnon"]
    private = max(now["RssAnon"], now["VmHWM"] - mapped)  # mapped pages only grow, so they were fewer at the peak
    return {
        "peak": now["VmHWM"] / 1024,
        "own": (now["VmHWM"] - base["VmRSS"]) / 1024,
        "private": (private - base["RssAnon"]) / 1024,
    }


def serve() -> None:
    """Makes the contestant that the first line of stdin describes, then runs and answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the contestant prints is no answer
    entrant = json.loads(sys.stdin.readline())
    sys.path[:] = entrant["path"]
    for name in entrant["imports"]:
        importlib.import_module(name)
    base = status()
    module, _, function = entrant["target"].partition(":")
    run: Run = getattr(importlib.import_module(module), function)(**entrant["options"])
    print("true", file=answers, flush=True)
    for line in sys.stdin:
        n = json.loads(line)
        if n is None:
            print(json.dumps(peak_memory(base, status())), file=answers, flush=True)
            continue
        started = time.perf_counter()
        run(n)
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    serve()
