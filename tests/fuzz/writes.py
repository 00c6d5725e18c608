"""Commands that write files, and what must hold when one of their writes fails: old or new, nothing between."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests.nursery import Nursery
from tests.solver.nets import IMAGES, write_images, write_solver

FAULTS = ("ENOSPC", "EIO", "SHORT")
NET = (
    IMAGES
    + """
layer { name: "rows" type: "Flatten" bottom: "ip" top: "rows" include { phase: TEST } }
layer { name: "kept" type: "HDF5Output" bottom: "rows" bottom: "label" hdf5_output_param { file_name: "out.h5" }
  include { phase: TEST } }
"""
)
SCHEDULE = "max_iter: 4 test_iter: 2 test_interval: 2 display: 1 snapshot: 2"


GROWING = r"log\.json|out\.h5|.*\.log|.*scores\.json"
"""What lines, rows or scores are added to."""
FREE = r".*\.svg|.*\.html"
"""What holds a time, or names by chance."""


@dataclass(frozen=True)
class Command:
    """A command line; `growing`: files that events are added to; `free`: whole ones that differ by run."""

    args: str
    growing: str = "-"
    free: str = "-"


TRAINED = f'{SCHEDULE} snapshot_prefix: "s"'
COMMANDS = {
    "train": Command("train --solver solver.prototxt --log-json log.json"),
    "train-binary": Command("train --solver binary.prototxt --log-json log.json"),
    "resume": Command("train --solver longer.prototxt --resume auto --keep 1 --log-json log.json"),
    "tensorboard": Command("train --solver solver.prototxt --log-dir tb", growing=r"tb/.*"),
    "decompose": Command("decompose --snapshot s_iter_4.caffemodel.h5 --error 0.3 --even-if-dearer --out low"),
    "deploy": Command("deploy s_iter_4.caffemodel.h5 -o use.prototxt"),
    "convert": Command("convert s_iter_4.caffemodel.h5 other.caffemodel"),
    "convert-state": Command("convert s_iter_4.solverstate.h5 other.solverstate"),
    "confusion": Command("confusion --model plain_net.prototxt --weights s_iter_4.caffemodel.h5 -o c.csv -o c.png"),
    "draw": Command("draw net.prototxt net.svg"),
    "draw-text": Command("draw net.prototxt net.txt"),
    "plot": Command("plot log.json -o curve.png"),
    "page": Command("plot log.json -o page.html"),
    "sensitivity": Command("sensitivity s_iter_4.caffemodel.h5 --solver plain.prototxt --error 0.3 -o sens.svg"),
    "frontier": Command("frontier s_iter_4.caffemodel.h5 --solver plain.prototxt --error 0.3 --finetune 2 "
                        "--latency no -o front.svg", free=r"front\.csv"),
    "sweep": Command("sweep --solver plain.prototxt --set force_decay=0.001 --finetune 2 --out sweep",
                     growing=r"sweep/results\.csv", free=r".*result.*"),
    "images": Command("data images list.txt made_lmdb"),
    "images-again": Command("data images --force list.txt old_lmdb"),
    "mean": Command("data mean --force train_lmdb mean.binaryproto"),
    "new": Command("new --force lenet starter"),
    "configs": Command("configs copy --force shipped examples/mnist"),
}  # fmt: skip


def prepare(folder: Path, nursery: Nursery) -> None:
    """What all the commands start from, with files that some of them replace."""
    write_images(folder, NET)
    write_solver(folder, TRAINED)
    write_solver(folder, TRAINED + " snapshot_format: BINARYPROTO", "binary.prototxt")
    write_solver(folder, TRAINED.replace("max_iter: 4", "max_iter: 6"), "longer.prototxt")
    (folder / "plain_net.prototxt").write_text(NET.partition('layer { name: "rows"')[0])
    schedule = SCHEDULE.replace("snapshot: 2", "")
    write_solver(folder, schedule, "plain.prototxt", 'net: "plain_net.prototxt"')
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).save(folder / f"{index}.png")
    (folder / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(3)))
    run(nursery, folder, "train --solver solver.prototxt --log-json log.json")
    olds = ("low.prototxt", "low.caffemodel.h5", "net.svg", "curve.png", "mean.binaryproto", "page.html")
    for path in (*olds, "use.prototxt", "use.caffemodel.h5", "other.caffemodel", "c.csv", "c.png"):
        (folder / path).write_text("old")
    run(nursery, folder, "data images list.txt old_lmdb")


def run(nursery: Nursery, folder: Path, args: str) -> None:
    result = nursery.run("-m", "forcereg", *args.split(), cwd=folder)
    assert result.returncode == 0, result.stderr


@dataclass(frozen=True)
class Run:
    """One run of a command with a fault: its result, its calls so far, and all files then."""

    result: subprocess.CompletedProcess[str]
    calls: list[str]
    files: dict[str, bytes]


def failing(nursery: Nursery, start: Path, folder: Path, args: str, at: int, fault: str) -> Run:
    """Runs in a copy of `start`, in which call `at` fails."""
    here, report = folder / "here", folder / "report.json"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(start, here)
    result = nursery.run("-m", "tests.fuzz.failing", str(at), fault, report, *args.split(), cwd=here, timeout=120)
    return Run(result, report.read_text().splitlines(), contents(here))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(command: Command, before: dict[str, bytes], whole: Run, one: Run, at: int, what: str) -> None:
    """Nothing is lost, nothing is left, and it is said in one line."""
    call = one.calls[at]
    told = f"{what}: {call}: exit code {one.result.returncode}: {one.result.stderr[-400:]}"
    lines = [line for line in one.result.stderr.splitlines() if re.match("forcereg: (?!warning)", line)]
    assert one.result.returncode in (0, 1), told
    assert "Traceback" not in one.result.stderr and "internal error" not in one.result.stderr, told
    assert "Exception ignored" not in one.result.stderr, told
    if one.result.returncode:
        assert len(lines) == 1, told
        assert re.search(r"no space left|input/output error|space and perm|full", one.result.stderr, re.IGNORECASE), (
            told
        )
    growing, free = re.compile(f"{GROWING}|{command.growing}"), re.compile(f"{FREE}|{command.free}|.*lock\\.mdb")
    for name in one.files.keys() | before.keys() | whole.files.keys():
        now, old, new = one.files.get(name), before.get(name), whole.files.get(name)
        if now is None:
            assert None in (old, new), f"{told}: {name} is lost"
        elif growing.fullmatch(name):
            check_grown(name, now, told)
        elif now != old and free.fullmatch(name):
            assert new is not None and now.split()[-1:] == new.split()[-1:], f"{told}: {name} is cut off"
        elif now != old or not one.result.returncode:
            assert now == new, f"{told}: {name} is neither old nor new"
        assert not re.search(r"\.tmp|\.old(/|$)", name), f"{told}: {name} is left"


def check_grown(name: str, content: bytes, told: str) -> None:
    """What is there so far can be read."""
    if name.endswith(".h5"):
        with h5py.File(io.BytesIO(content)) as file:
            assert len(file["data"][()]) == len(file["label"][()]), f"{told}: {name}"
    elif name.endswith(".csv"):  # of fewer results
        assert content.endswith(b"\n"), f"{told}: {name}"
    elif name.endswith("scores.json"):
        json.loads(content)
    elif name.endswith(".json"):  # of the last line a part may be lacking
        for line in content.split(b"\n")[:-1]:
            json.loads(line)
