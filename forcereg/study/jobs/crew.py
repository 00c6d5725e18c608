"""Several processes that share the runs of a call: how many, who starts them, and how they fare."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from forcereg.data.budget import DECODING
from forcereg.errors import ForceregError, UsageError
from forcereg.registry import executor, layer
from forcereg.schema.settings import settings_of
from forcereg.schema.text import SolverFile
from forcereg.study.jobs import local, ray, slurm
from forcereg.study.jobs.job import Job
from forcereg.system import sidefiles
from forcereg.system.events import Tell
from forcereg.system.paths import listed
from forcereg.system.plugins import named_modules

EXECUTORS = (local, slurm, ray)
"""Modules that register executors."""
PAUSE = 0.2
"""Seconds between two looks how they fare."""
PATIENCE = 30.0
"""Seconds in which a process whose work is done by all together ends by itself."""


class Processes(Protocol):
    """What an executor gives for a job, a number of processes and resources: those processes.

    `takes`: what its resources are, in words; "" if it takes none.
    """

    takes: str

    def ended(self) -> dict[int, str]:
        """Number of each that has ended -> how; "" for well, or as it has told itself."""

    def stop(self) -> None:
        """Tells all to stop once they have saved themselves; told again they stop at once."""

    def kill(self) -> None:
        """Ends those that still run, and lets go of what they took."""


@dataclass(frozen=True)
class Crew:
    """`count` processes by an executor, with resources by name; `devices`: numbers of the GPUs they take in turn."""

    count: int
    executor: str
    resources: Mapping[str, Any] = field(default_factory=dict)
    devices: Sequence[int] = ()

    @contextlib.contextmanager
    def at_work(self, work: Callable[[Tell, str], Any], out: Path, tell: Tell) -> Iterator[Team]:
        """The processes, each of which calls `work`, until the block ends and they have ended; see `Job`.

        When the block is left by an error, or KeyboardInterrupt, they are told to stop, and waited for; at a second
        KeyboardInterrupt they stop at once, at a third they are killed. Raises ForceregError if they can't be started.
        """
        call = uuid.uuid4().hex[:8]
        job = Job(work, call, out, os.getcwd(), _modules(), DECODING.limit, self.devices)
        processes: Processes = executor.get(self.executor)(job, self.count, self.resources)
        team = Team(self, job, processes, tell)
        try:
            yield team
            team.wait(PATIENCE)
        finally:
            try:
                team.stop()
            finally:
                processes.kill()
                team.hear()
                team.clean_up()


def _modules() -> list[str]:
    """What processes have to import before they know the same layers: modules that users name, or have imported."""
    theirs = [str(getattr(layer.get(name), "__module__", "")) for name in layer]
    strangers = [name for name in theirs if name.partition(".")[0] not in ("", "__main__", "forcereg", "torch")]
    return list(dict.fromkeys([*named_modules(), *strangers]))


class Team:
    """Processes at work."""

    def __init__(self, crew: Crew, job: Job, processes: Processes, tell: Tell) -> None:
        self._crew, self._job, self._processes, self._tell = crew, job, processes, tell
        self._told, self._warned = set[int](), set[str]()
        self._read = dict.fromkeys(range(crew.count), 0)

    def busy(self) -> bool:
        """Whether one still runs. Tells what they say, and how they end."""
        ended = self._processes.ended()
        self.hear()
        for number in ended.keys() - self._told:
            self._told.add(number)
            if ended[number]:
                self._tell.warn(f"{self._name(number)} {ended[number]}; the others go on with what it has left")
        return len(ended) < self._crew.count

    def hear(self) -> None:
        """Tells what they have said since."""
        for number, place in self._read.items():
            try:
                with open(self._job.told(number), "rb") as file:
                    file.seek(place)
                    lines = file.read().rpartition(b"\n")
            except OSError:
                continue
            self._read[number] += len(lines[0]) + len(lines[1])
            for line in lines[0].splitlines():
                self._pass_on(number, line.decode(errors="replace"))

    def _pass_on(self, number: int, line: str) -> None:
        with contextlib.suppress(ValueError):
            said = sidefiles.of_form(sidefiles.parse_json(line), dict[str, str])
            kind, text = said.get("kind"), said.get("text", "")
            if kind == "warning":
                if text in self._warned:  # of another
                    return
                self._warned.add(text)
            told = f"{self._name(number)}: {text}"
            self._tell.note(told) if kind == "note" else self._tell.warn(told)

    def _name(self, number: int) -> str:
        return f"job {number + 1}"

    def nobody_left(self, left: int, most: int) -> ForceregError:
        """The error for so many runs, of `most`, that all of them have left."""
        return ForceregError(
            f"all {self._crew.count} jobs have ended, and {left} of {most} runs are left, as told above; run again to "
            "go on"
        )

    def wait(self, seconds: float | None = None) -> None:
        """Until all have ended, or for so long."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.busy() and (deadline is None or time.monotonic() < deadline):
            time.sleep(PAUSE)

    def stop(self) -> None:
        """Has all end: they save themselves first, if a KeyboardInterrupt doesn't hurry them, and another kill them."""
        if not self.busy():
            return
        self._processes.stop()
        try:
            self._tell.note("jobs are told to stop and save themselves; once more (Ctrl-C) and they stop at once")
            self.wait()
        except KeyboardInterrupt:
            self._processes.stop()
            self.wait(PATIENCE)

    def clean_up(self) -> None:
        """Deletes what was told."""
        for number in self._read:
            with contextlib.suppress(OSError):
                self._job.told(number).unlink()
        with contextlib.suppress(OSError):
            (self._job.told(0).parent).rmdir()  # unless others are at work


def crew_of(
    jobs: int, name: str, resource: Mapping[str, Any] | Sequence[str], device: Any, solver: SolverFile
) -> tuple[Crew | None, str | None]:
    """The crew of a call, None if it runs all by itself, and the device that its runs are given.

    `device`: one or several that are asked for, None for the `solver`'s. Processes here take the GPUs named in turn,
    without a number all that there are. Raises UsageError.
    """
    resources = _resources(resource)
    takes = executor.get(name).takes if name in executor else None
    if takes is None:
        raise UsageError(f"--executor is '{name}'; expected {', '.join(executor)}")
    if resources and not takes:
        known = ", ".join(f"{one} ({executor.get(one).takes})" for one in executor if executor.get(one).takes)
        raise UsageError(f"--resource is for jobs elsewhere, by --executor {known}; leave it out")
    devices = [None] if device is None else listed(device)
    if jobs == 1 and name == "local":
        if len(devices) > 1:
            raise UsageError(f"{len(devices)} devices are named; one run at a time takes one, several take --jobs")
        return None, devices[0]
    if len(devices) == 1 and (name != "local" or devices[0] == "cpu" or ":" in str(devices[0])):
        return Crew(jobs, name, resources), devices[0]
    numbers = [_number(one) for one in devices] if len(devices) > 1 else _all_gpus(devices[0], solver)
    return Crew(jobs, name, resources, numbers), "cuda" if numbers else devices[0]


def _all_gpus(device: str | None, solver: SolverFile) -> list[int]:
    # as `choose_device` has it, and without a warning
    param = solver.message
    on_cpu = param.HasField("solver_mode") and param.solver_mode != param.SolverMode.Value("GPU")
    return [] if on_cpu and device is None else [*range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def _number(device: str | None) -> int:
    match = re.fullmatch(r"cuda:(\d{1,4})", str(device), re.ASCII)
    if match is None:
        raise UsageError(f"device '{device}' is among several; expected GPUs by their numbers, as in cuda:0")
    return int(match[1])


def _resources(asked: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in settings_of(asked):
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"--resource {text}: expected NAME=VALUE, as in time=600 or gres=gpu:1")
        number = re.fullmatch(r"\d{1,18}", value.strip(), re.ASCII)
        found[name.strip().replace("-", "_")] = int(value) if number else value.strip()
    return found
