"""Training speed of one net on one device: forcereg beside the plain loops, in turns, in one process."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baselines import LAYOUTS, PLANS, Plan, plan_loop
from made import furnish, make_solver

from forcereg.system.device import prepare
from forcereg.system.events import Event

Run = Callable[[int], object]
SETTINGS = ("float32", "TF32", "bf16")
BLOCK = 0.1
"""Seconds that a turn should last at least."""


@dataclass(frozen=True)
class Job:
    """What a section gets: the device ("cuda", "cpu"), `quick` for tiny sizes, when to end, where real data is."""

    device: str
    quick: bool
    deadline: float
    mnist: Path | None = None
    golden: Path | None = None

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        """Returns when the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Goal:
    """What was wanted (`text`) and what was found, with its unit."""

    text: str
    found: str
    met: bool


@dataclass
class Section:
    """What a section found: lines of its table, figures for the JSON, goals; `failed` if results are wrong."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    failed: bool = False


@dataclass(frozen=True)
class Speed:
    """What to measure: a net, its batch, how many records its set has, whether it has a force, and the goals.

    `faster` than the better plain loop by this factor; `images`: no slower than the channels_last loop.
    """

    plan: Plan
    batch: int
    records: int
    faster: float = 0
    force: bool = True
    images: bool = False


SPEEDS = {
    "lenet": Speed(PLANS["lenet"], 64, 12_800, faster=5),
    "cifar10_full": Speed(PLANS["cifar10_full"], 100, 10_000),
    "resnet20": Speed(PLANS["resnet20"], 128, 12_800, faster=3),
    "alexnet": Speed(PLANS["alexnet"], 256, 1024, force=False, images=True),
    "googlenet": Speed(PLANS["googlenet"], 128, 1024, force=False, images=True),
    "resnet50": Speed(PLANS["resnet50"], 64, 1024, force=False, images=True),
}


class Notes:
    """An observer that keeps warnings and notes, so that a net which wasn't recorded as a graph is noticed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind in ("note", "warning") and event.text not in self.texts:
            self.texts.append(event.text)


def plain(speed: Speed, batch: int, job: Job, layout: str, setting: str) -> Run:
    """The plain loop in one layout; with bf16 under autocast."""
    images, labels = speed.plan.data((2 if job.quick else 8) * batch, job.device)
    autocast = {"autocast": partial(torch.autocast, job.device, torch.bfloat16)} if setting == "bf16" else {}
    return plan_loop(speed.plan, images, labels, LAYOUTS[layout], batch, **autocast)


def ours(speed: Speed, root: Path, batch: int, job: Job, setting: str, notes: Notes, **options: Any) -> Run:
    """The shipped solver's step."""
    amp = "bf16" if setting == "bf16" else None
    solver = make_solver(speed.plan, root, job.device, batch, amp=amp, observers=[notes], **options)
    return solver.step


def contestants(speed: Speed, root: Path, batch: int, job: Job, setting: str, notes: Notes) -> dict[str, Run]:
    """All that take turns in one setting, by name."""
    main = setting == SETTINGS[0]
    runs = {f"plain, {layout}": plain(speed, batch, job, layout, setting) for layout in LAYOUTS}
    runs["forcereg"] = ours(speed, root, batch, job, setting, notes)
    if main:
        runs["forcereg, no graph"] = ours(speed, root, batch, job, setting, Notes(), cuda_graph=False)
    if main and speed.force:
        runs["forcereg, no force"] = ours(speed, root, batch, job, setting, notes, force=False)
    prepare(torch.device(job.device), tf32=setting == "TF32")  # behind the solvers, which turn it off
    return runs


def take_turns(runs: Mapping[str, Run], warm: int, job: Job, deadline: float) -> dict[str, list[float]]:
    """Seconds per iteration of each run's turns, until the deadline; at least one round, at most 25."""
    names, turns = list(runs), {}
    for name in names:
        timed(runs[name], warm, job)
        turns[name] = 1 if job.quick else max(1, round(BLOCK / timed(runs[name], 2, job)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(1 if job.quick else 25):
        if index and time.monotonic() > deadline:
            break
        for at in range(len(names)):
            name = names[(index + at) % len(names)]
            times[name].append(timed(runs[name], turns[name], job))
    return times


def timed(run: Run, n: int, job: Job) -> float:
    """Seconds per iteration of n."""
    job.wait()
    started = time.perf_counter()
    run(n)
    job.wait()
    return (time.perf_counter() - started) / n


def settings(speed: Speed, root: Path, batch: int, job: Job) -> Iterator[tuple[str, dict[str, list[float]], Notes]]:
    """Each setting's times, while there is time (float32 gets half of it), and what the solvers had to say."""
    # the whole set is decoded and on the device before anything is timed
    warm = 1 if job.quick else speed.records // batch + 5
    for index, setting in enumerate(SETTINGS):
        if index and job.left() < 0:
            return
        deadline = time.monotonic() + job.left() / (2 if index == 0 else len(SETTINGS) - index)
        notes = Notes()
        yield setting, take_turns(contestants(speed, root, batch, job, setting, notes), warm, job, deadline), notes
        free(job)


def free(job: Job) -> None:
    """Gives the memory of what nobody holds back to the device."""
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()


def speed_section(name: str, job: Job) -> Section:
    """One net's table; batches that don't fit the GPU's memory are halved."""
    prepare(torch.device(job.device))
    speed, batch = SPEEDS[name], SPEEDS[name].batch
    if job.quick:
        batch = 1 if speed.images else 8
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        furnish(speed.plan, root, 2 * batch if job.quick else speed.records)
        while True:
            try:
                section = Section()
                for setting, times, notes in settings(speed, root, batch, job):
                    report(section, speed, name, batch, setting, times, notes)
                return section
            except torch.cuda.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
            free(job)


def report(
    section: Section,
    speed: Speed,
    name: str,
    batch: int,
    setting: str,
    times: Mapping[str, list[float]],
    notes: Notes,
) -> None:
    """Adds one setting's lines, figures and goals."""
    median = {one: statistics.median(values) for one, values in times.items()}
    by_hand = [median[f"plain, {layout}"] for layout in LAYOUTS]
    if not section.lines:
        columns = "".join(f"{'x ' + layout:>16}" for layout in LAYOUTS)
        section.lines.append(f"{f'{name}, batch {batch}':28}{'ms/iteration':>13}{'min':>9}{'images/s':>11}{columns}")
    for one, value in median.items():
        row = "".join(f"{other / value:16.2f}" for other in by_hand)
        title = one if setting == SETTINGS[0] else f"{one}, {setting}"
        section.lines.append(f"{title:28}{value * 1e3:13.3f}{min(times[one]) * 1e3:9.3f}{batch / value:11.0f}{row}")
    section.lines += [f"  {text}" for text in notes.texts]
    section.figures[setting] = {"batch": batch, "median_s": median, "seconds": dict(times), "notes": notes.texts}
    if setting == SETTINGS[0]:
        section.goals += goals(speed, name, median)


def goals(speed: Speed, name: str, median: Mapping[str, float]) -> Iterator[Goal]:
    """The goals of a net, by its medians in float32."""
    own, by_hand = median["forcereg"], {layout: median[f"plain, {layout}"] for layout in LAYOUTS}
    if speed.faster:
        factor = min(by_hand.values()) / own
        yield Goal(f"{name}: >= {speed.faster:g}x the better plain loop", f"{factor:.2f}x", factor >= speed.faster)
    if speed.images:
        factor = by_hand["channels_last"] / own
        yield Goal(f"{name}: images/s >= 1x the channels_last loop", f"{factor:.2f}x", factor >= 1)
    if speed.force:
        share = own / median["forcereg, no force"] - 1
        yield Goal(f"{name}: the force adds <= 5 %", f"{share:.1%}", share <= 0.05)


def to_json(section: Section) -> dict[str, Any]:
    """A section as JSON takes it."""
    return asdict(section)
