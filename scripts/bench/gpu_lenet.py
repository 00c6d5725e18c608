"""The README's LeNet from its first to its last iteration, with its tests, log lines and snapshots."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines import PLANS
from gpu_golden import mnist
from gpu_speed import Goal, Job, Notes, Section
from made import Made, patterns, serve, solver_file

from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.system.events import Event

PLAN = PLANS["lenet"]


class Watch(Notes):
    """Counts tests, keeps the last one's accuracy, and stops a solver that takes too long."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.tests, self.accuracy, self._deadline = 0, 0.0, deadline
        self.solver: Solver | None = None

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == "test":
            self.tests += 1
            self.accuracy = next(float(one.value) for one in event.outputs if one.name == "accuracy")
        elif event.kind == "progress" and self.solver and time.monotonic() > self._deadline:
            self.solver.stop_requested = True


def furnish(root: Path, job: Job) -> str:
    """The sets: MNIST if there is a folder, else made ones of its size; in LMDBs if lmdb is there. Says which."""
    sets, told = (mnist(job.mnist), "MNIST") if job.mnist else (made(job), "made images")
    if importlib.util.find_spec("lmdb") is None:
        serve(sets)
        return f"{told} in memory"
    from forcereg.data.convert import write_set

    serve({})
    for name, one in sets.items():
        write_set(root / "examples/mnist" / name, one.images, one.labels, 8, False)
    return f"{told} in LMDBs"


def made(job: Job) -> dict[str, Made]:
    """Sets like MNIST's."""
    sizes = {"mnist_train_lmdb": 640, "mnist_test_lmdb": 200} if job.quick else {}
    sizes = sizes or {"mnist_train_lmdb": 60_000, "mnist_test_lmdb": 10_000}
    return {name: patterns(name, count, PLAN.shape, 10, seed) for seed, (name, count) in enumerate(sizes.items(), 1)}


def run(root: Path, job: Job) -> tuple[Solver, Watch, Mapping[str, float]]:
    """Makes the solver and has it solve; seconds of both."""
    watch = Watch(job.deadline)
    file = solver_file(PLAN, root, PLAN.batch)
    if job.quick:
        file.message.max_iter, file.message.test_interval, file.message.test_iter[:] = 20, 10, [2]
    with open(os.devnull, "w") as sink:
        started = time.perf_counter()
        solver = watch.solver = Solver(file, device=job.device, observers=[GlogWriter(sink), watch])
        job.wait()
        built = time.perf_counter()
        solver.solve()
        job.wait()
    return solver, watch, {"build": built - started, "solve": time.perf_counter() - built}


def lenet_section(name: str, job: Job) -> Section:
    """Seconds of all 10,000 iterations: with a cold start, and again, the set on the device and kernels chosen."""
    section = Section(figures={"runs": []})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "examples/mnist").mkdir(parents=True)
        told = furnish(root, job)
        title = f"LeNet, the whole run, {told}"
        section.lines.append(f"{title:44}{'build s':>9}{'solve s':>9}{'tests':>7}{'accuracy':>10}")
        kept: list[Any] = []
        for title in ("from a cold start", "after start-up"):
            if kept and job.left() < 0:
                section.lines.append(f"{title}: no time left")
                break
            solver, watch, seconds = run(root, job)
            kept.append(solver)  # its feeds hold the decoded sets
            add(section, title, solver, watch, seconds)
    return section


def add(section: Section, title: str, solver: Solver, watch: Watch, seconds: Mapping[str, float]) -> None:
    """One run's line, figures and goal, which replaces that of the run before."""
    wanted, done = solver.param.max_iter, solver.iter
    short = "" if done == wanted else f", stopped at {done}"
    row = f"{seconds['build']:9.2f}{seconds['solve']:9.2f}{watch.tests:7}{watch.accuracy:10.4f}"
    section.lines.append(f"{f'{wanted} iterations {title}{short}':44}{row}")
    section.lines += [f"  {text}" for text in watch.texts if f"  {text}" not in section.lines]
    figures = {"title": title, **seconds, "iterations": done, "tests": watch.tests, "accuracy": watch.accuracy}
    section.figures["runs"].append(figures)
    took = seconds["solve"] * wanted / max(1, done)
    found = f"{took:.2f} s" + (" at this pace" if short else "")
    section.goals[:] = [Goal(f"lenet: {wanted:,} iterations and their tests in <= 3 s", found, took <= 3)]
    if not short and wanted == 10_000 and not (watch.tests == 21 and watch.accuracy > 0.9):
        section.lines.append(f"  failed: {watch.tests} tests and accuracy {watch.accuracy}, expected 21 and above 0.9")
        section.failed = True
