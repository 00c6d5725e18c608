"""All GPU figures in one command: training speed against plain PyTorch, and Caffe's recorded numbers.

    python scripts/bench/gpu.py [SECTION ...] [--minutes 7] [--json gpu_bench.json] [--mnist IDX_DIR]
        [--golden DIR] [--device cuda] [--quick]

Needs Linux, a CUDA device, an unpacked checkout, and torch >= 2.7, numpy, h5py, protobuf and click; no installation
and no network. Sections, each in a process of its own, so that one that fails leaves the others alone:
- run: the README's LeNet solver, all 10,000 iterations with 21 tests, log lines and snapshots, on MNIST (--mnist, or
  ../shared/data/mnist if there) or made images of its size, from LMDBs where lmdb is installed, else from memory;
- lenet, cifar10_full, resnet20: a training iteration of the shipped solver, as a CUDA graph, without one, and without
  force, beside plain PyTorch loops over the same nets, contiguous and channels_last (baselines.py); Data layers with
  their transforms, displays and log are part of it;
- alexnet, googlenet, resnet50: the same without force; halved batches where memory is short;
- golden: Caffe's recorded numbers (tests/golden, and --golden's single files) on the device.
float32 is float32 on both sides; further rows have TF32 or bf16 (autocast) on both. Turns are interleaved; figures are
medians in milliseconds, "x" columns say how many times as fast as that plain loop. Exit code 1: a section failed.
`--device cpu --quick` goes through the same code with tiny sizes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "scripts/bench")]

import h5py  # noqa: E402
import torch  # noqa: E402
from gpu_golden import golden_section  # noqa: E402
from gpu_lenet import lenet_section  # noqa: E402
from gpu_speed import Goal, Job, Section, speed_section, to_json  # noqa: E402

Measure = Callable[[str, Job], Section]
SECTIONS: dict[str, tuple[Measure, float]] = {
    "run": (lenet_section, 30),
    "lenet": (speed_section, 30),
    "resnet20": (speed_section, 45),
    "golden": (golden_section, 90),
    "alexnet": (speed_section, 60),
    "resnet50": (speed_section, 60),
    "googlenet": (speed_section, 60),
    "cifar10_full": (speed_section, 30),
}
"""What measures a section, and its share of the time."""

GRACE = 45
"""Seconds beyond --minutes after which a section that is still running is ended."""


def machine(name: str, job: Job) -> Section:
    """What the figures are taken on."""
    found: dict[str, Any] = {
        "host": platform.node(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "h5py": h5py.__version__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": job.device,
    }
    if job.device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {"device": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)}
        found |= {"capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    text = ", ".join(f"{key} {value}" for key, value in found.items() if key not in ("host", "device", "date"))
    return Section([f"{found['device']}; {text}; {found['date']}"], found)


def serve(measure: Measure, name: str, job: Job, answers: Connection) -> None:
    """In the child: measures, and sends the section or how it failed."""
    try:
        answers.send((measure(name, job), None))
    except BaseException as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        answers.send((Section([f"{name}: failed: {why}"], failed=True), traceback.format_exc()))


def isolated(measure: Measure, name: str, job: Job, seconds: float) -> tuple[Section, str | None]:
    """The section, measured in a forked process that is ended after `seconds`, and the traceback if it failed."""
    if seconds < 5:
        return Section([f"{name}: failed: no time left; give more --minutes"], failed=True), "no traceback: not run"
    context = multiprocessing.get_context("fork")  # torch is loaded once; only children touch the GPU
    answers, theirs = context.Pipe(duplex=False)
    child = context.Process(target=serve, args=(measure, name, job, theirs))
    child.start()
    theirs.close()
    try:
        if answers.poll(seconds):
            return answers.recv()
        return Section([f"{name}: failed: ended after {seconds:.0f} s"], failed=True), "no traceback: it was ended"
    except EOFError:
        child.join()
        return Section([f"{name}: failed: its process ended with {child.exitcode}"], failed=True), "no traceback"
    finally:
        child.kill()
        child.join()


def report_goals(goals: list[Goal]) -> None:
    """Which goals are reached."""
    print(f"\n{'goal':62}{'found':>22}")
    for goal in goals:
        print(f"{goal.text:62}{goal.found:>22}  {'reached' if goal.met else 'missed'}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=7, help="for all together (default: 7)")
    parser.add_argument("--json", type=Path, default=Path("gpu_bench.json"), help="where the figures go")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's idx files")
    parser.add_argument("--golden", type=Path, help="folder of single golden files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    given = parser.parse_args()
    unknown = [name for name in given.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; choose from {', '.join(SECTIONS)}")
    for folder in (given.mnist, given.golden):
        if folder and not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    shared = TOP.parent / "shared"
    if given.mnist is None and (shared / "data/mnist").is_dir() and not given.quick:
        given.mnist = shared / "data/mnist"
    return given


def write(path: Path, figures: dict[str, Any]) -> None:
    """What there is so far, so that an interrupted run leaves it."""
    path.write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Measures section by section, printing and writing each as it comes."""
    given = arguments()
    end = time.monotonic() + 60 * given.minutes

    def job(seconds: float) -> Job:
        deadline = time.monotonic() + seconds
        return Job(given.device, given.quick, deadline, given.mnist, given.golden)

    about, trouble = isolated(machine, "machine", job(60), 60)
    if trouble:
        raise SystemExit(f"{about.lines[0]}; expected a {given.device} device (--device cpu --quick needs none)")
    figures: dict[str, Any] = {"machine": about.figures, "quick": given.quick, "sections": {}}
    print(about.lines[0], flush=True)
    names = [name for name in SECTIONS if not given.sections or name in given.sections]
    goals, failed = list[Goal](), False
    for index, name in enumerate(names):
        measure, share = SECTIONS[name]
        left = end - time.monotonic()
        seconds = left * share / sum(SECTIONS[one][1] for one in names[index:])
        section, trouble = isolated(measure, name, job(seconds), min(left + GRACE, 2 * seconds + 30))
        print("", *section.lines, sep="\n", flush=True)
        figures["sections"][name] = {**to_json(section), "traceback": trouble}
        goals, failed = goals + section.goals, failed or section.failed
        write(given.json, figures)
    report_goals(goals)
    print(f"\nfigures in {given.json}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # so that a child that is ended leaves nothing behind
        main()
