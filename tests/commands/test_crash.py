"""Runs that are stopped, snapshot and killed from outside, and go on with --resume auto as if nothing had happened."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nursery import Child, Nursery
from tests.solver.nets import write_images, write_solver
from tests.solver.test_resume import assert_same

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
TRAIN = ("train", "--solver", "solver.prototxt")
KILLS = 20


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """With all modules loaded: a kill costs milliseconds, and most of them hit the training and not the start."""
    with Nursery(*(f"forcereg.solver.{name}" for name in ("loop", "resume", "signals", "distributed"))) as nursery:
        yield nursery


Command = Callable[..., Child]


@pytest.fixture
def command(nursery: Nursery) -> Iterator[Command]:
    """`command(folder, "train", ...)` starts forcereg, its output behind folder/log; ended with the test."""
    started: list[Child] = []

    def start(folder: Path, *args: str) -> Child:
        log = folder / "log"
        started.append(nursery.start("-m", "forcereg", *args, cwd=folder, env=ON_CPU, out=log, err=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def prepare(root: Path, max_iter: int, form: str = "HDF5") -> Path:
    """A folder with solver, net and data; the net has Dropout, BatchNorm, random crops and momentum."""
    root.mkdir()
    write_images(root)
    write_solver(
        root,
        f"momentum: 0.9 weight_decay: 0.001 average_loss: 3 display: 5 test_iter: 2 test_interval: 7 snapshot: 3 "
        f'max_iter: {max_iter} snapshot_prefix: "s" snapshot_format: {form}',
    )
    return root


def read(folder: Path) -> str:
    return (folder / "log").read_text()


def last(folder: Path, max_iter: int) -> tuple[Path, Path]:
    return tuple(folder / f"s_iter_{max_iter}.{kind}.h5" for kind in ("caffemodel", "solverstate"))  # type: ignore[return-value]


# -- kill -9


def test_killed_at_random_moments(command: Command, tmp_path: Path) -> None:
    """Whatever a kill hits (start, training, a test, the writing of a snapshot), the end is bit for bit the same."""
    iterations = 120
    whole, killed = (prepare(tmp_path / name, iterations) for name in ("whole", "killed"))
    began = time.monotonic()
    assert command(whole, *TRAIN).wait() == 0, read(whole)
    duration = time.monotonic() - began

    chance = random.Random(1)
    for _ in range(KILLS):
        process = command(killed, *TRAIN, "--resume", "auto")
        time.sleep(chance.uniform(0, duration / 5))
        process.kill()
        code = process.wait()
        assert code in (0, -signal.SIGKILL), read(killed)
        if code == 0:  # it was through; the others start over
            for path in killed.glob("s_iter_*"):
                path.unlink()
    assert command(killed, *TRAIN, "--resume", "auto").wait() == 0, read(killed)
    assert "Restoring previous solver status" in read(killed)
    for one, other in zip(last(whole, iterations), last(killed, iterations), strict=True):
        assert_same(one, other)
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
@pytest.mark.parametrize("at", ["between-model-and-state", "in-the-model", "in-the-state"])
def test_killed_within_a_snapshot(at: str, form: str, command: Command, tmp_path: Path) -> None:
    """The newest snapshot that is whole is the one before; the run goes on from there."""
    whole = prepare(tmp_path / "run", 9, form)
    assert command(whole, *TRAIN).wait() == 0, read(whole)
    killed, whole = whole, Path(shutil.copytree(whole, tmp_path / "whole"))
    end = ".h5" if form == "HDF5" else ""
    state, model = (killed / f"s_iter_9.{kind}{end}" for kind in ("solverstate", "caffemodel"))
    # files are renamed into place: what a kill leaves is a name that isn't there, or one of a writer's own
    state.rename(killed / f".s_iter_9.solverstate{end}.0123abcd.tmp")
    if at == "in-the-model":
        model.rename(killed / f".s_iter_9.caffemodel{end}.0123abcd.tmp")
    elif at == "in-the-state":
        (killed / f".s_iter_9.solverstate{end}.0123abcd.tmp").write_bytes(b"half")
    assert command(killed, *TRAIN, "--resume", "auto").wait() == 0
    resumed = read(killed).rpartition("Restoring previous solver status from ")
    assert f"s_iter_6.solverstate{end}" in resumed[2].splitlines()[0]
    passed_over = re.search(r"^W.*snapshot 9 is passed over: .*has no solver state$", resumed[0], re.MULTILINE)
    assert bool(passed_over) == (at != "in-the-model")
    for kind in ("caffemodel", "solverstate"):
        name = f"s_iter_9.{kind}{end}"
        if form == "HDF5":
            assert_same(whole / name, killed / name)
        elif kind == "solverstate":
            assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list(killed.glob(".*.tmp"))


KILL_BEFORE_STATE = """
import os, signal
import forcereg.snapshot as snapshot
from forcereg.solver import saving
from forcereg.__main__ import main
write = saving.snapshot.write_state
def killed(path, iteration, *rest):
    if iteration == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, iteration, *rest)
saving.snapshot.write_state = killed
main(["train", "--solver", "solver.prototxt"])
"""


def test_killed_just_before_the_state_is_written(command: Command, nursery: Nursery, tmp_path: Path) -> None:
    whole, killed = (prepare(tmp_path / name, 9) for name in ("whole", "killed"))
    done = nursery.run("-c", KILL_BEFORE_STATE, cwd=killed, env=ON_CPU)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob("s_iter_*")) == [
        "s_iter_3.caffemodel.h5", "s_iter_3.solverstate.h5", "s_iter_6.caffemodel.h5",
    ]  # fmt: skip
    assert command(killed, *TRAIN, "--resume", "auto").wait() == 0, read(killed)
    assert "snapshot 6 is passed over" in read(killed)
    assert command(whole, *TRAIN).wait() == 0, read(whole)
    for one, other in zip(last(whole, 9), last(killed, 9), strict=True):
        assert_same(one, other)


# -- signals


def await_line(folder: Path, pattern: str, process: Child) -> str:
    """Waits until the log has a line with `pattern`; its first group."""
    for _ in range(6000):
        if match := re.search(pattern, read(folder)):
            return match[1]
        assert process.poll() is None, read(folder)
        time.sleep(0.01)
    raise AssertionError(f"no line with {pattern!r}:\n{read(folder)}")


FOREVER = 100_000_000
UNSAVED = ("--set", "snapshot=0")


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(signal.SIGINT, [], id="SIGINT"),
        pytest.param(signal.SIGTERM, [], id="SIGTERM"),
        pytest.param(signal.SIGHUP, ["-sighup_effect=stop"], id="SIGHUP-to-stop"),
    ],
)
def test_stop_saves_ends_well_and_can_go_on(
    number: signal.Signals, options: list[str], command: Command, tmp_path: Path
) -> None:
    """In the middle of an iteration: it is finished, saved, and what comes out later is what would have come out."""
    stopped = prepare(tmp_path / "stopped", FOREVER)
    process = command(stopped, *TRAIN, *UNSAVED, *options)
    await_line(stopped, r"Iteration (5) ", process)
    process.send_signal(number)
    assert process.wait(60) == 0, read(stopped)
    said = [line.partition("] ")[2] for line in read(stopped).splitlines()]
    assert said[-2:] == ["Optimization stopped early.", "Optimization Done."]
    (saved,) = re.findall(r"solver state to HDF5 file .*s_iter_(\d+)\.", read(stopped))
    end = int(saved) + 6

    whole = prepare(tmp_path / "whole", end)
    for folder, resume in ((whole, []), (stopped, ["--resume=auto"])):
        assert command(folder, *TRAIN, *UNSAVED, "--max-iter", str(end), *resume).wait() == 0, read(folder)
    for one, other in zip(last(whole, end), last(stopped, end), strict=True):
        assert_same(one, other)


def test_effects_none_and_snapshot(command: Command, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", FOREVER)
    process = command(folder, *TRAIN, *UNSAVED, "--sigint_effect", "snapshot", "--sighup_effect", "none")
    first = int(await_line(folder, r"Iteration (5) ", process))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    saved = int(await_line(folder, r"solver state to HDF5 file .*s_iter_(\d+)\.", process))
    assert saved > first
    await_line(folder, rf"Iteration ({saved // 5 * 5 + 10}) ", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert len(re.findall("Snapshotting solver state", read(folder))) == 2


def test_second_interrupt_does_not_wait(command: Command, tmp_path: Path) -> None:
    """While the first one waits for a test that takes for ever between two batches, as it seems to the user."""
    folder = prepare(tmp_path / "run", FOREVER)
    (folder / "slow.py").write_text(
        "import time, torch, forcereg\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if 'Testing net' in open('log').read():\n"
        "            print('in it', flush=True)\n"
        "            for _ in range(6000): time.sleep(0.01)\n"
        "        return x\n"
        "forcereg.layer('Slow')(Slow)\n"
    )
    net = folder / "net.prototxt"
    net.write_text(net.read_text() + 'layer { name: "slow" type: "Slow" bottom: "ip" top: "slow" }')
    process = command(folder, *TRAIN, "--import", "slow")
    await_line(folder, "(in it)", process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert read(folder).splitlines()[-1] == "forcereg: interrupted"


def test_the_same_signal_twice_is_one(command: Command, tmp_path: Path) -> None:
    """Process managers send it to the process and to its group."""
    folder = prepare(tmp_path / "run", FOREVER)
    process = command(folder, *TRAIN, *UNSAVED)
    await_line(folder, r"Iteration (5) ", process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert process.wait(60) == 0, read(folder)
    assert len(re.findall("Snapshotting solver state", read(folder))) == 1


def test_a_save_asked_for_early_is_late(command: Command, tmp_path: Path) -> None:
    """A run that can't hear signals yet is not ended by one that asks for a snapshot."""
    folder = prepare(tmp_path / "run", FOREVER)
    net = folder / "net.prototxt"
    layer = 'layer { name: "e" type: "Python" bottom: "ip" top: "e" python_param { module: "early" layer: "Early" } }'
    (folder / "early.py").write_text(
        "import os, signal, torch\nos.kill(os.getpid(), signal.SIGHUP)\nEarly = torch.nn.Identity\n"
    )
    net.write_text(net.read_text() + layer)
    process = command(folder, *TRAIN, *UNSAVED, "--allow-python-layers")
    await_line(folder, r"solver state to HDF5 file .*s_iter_(\d+)\.", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, read(folder)
