"""Processes that train together: how they find each other, who launches them, and what is said of their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from forcereg.errors import ForceregError, UsageError
from forcereg.net.load import load_net
from forcereg.schema import SolverParameter
from forcereg.solver import contact, distributed, launch
from forcereg.solver.contact import LostContact
from forcereg.solver.distributed import Group, join
from tests.conftest import RunCli

ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of rank 1 of 2, but for where the others are."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", launch.REPORTS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("size", [None, "", "1"], ids=repr)
def test_alone_without_torchrun(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    group = join(["cuda:3"], SolverParameter())
    assert (group.rank, group.size, group.device) == (0, 1, "cuda:3")
    assert launch.said_by("text") == "text"


def test_half_an_environment(ranked: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ForceregError, match="WORLD_SIZE is set but MASTER_ADDR, MASTER_PORT is not; start with torchrun"
    ):
        join(["cpu"], SolverParameter())


@pytest.mark.parametrize(
    ("devices", "gpus", "expected"),
    [
        (["cpu"], 2, "cpu"),
        ([None], 2, "cuda:1"),
        (["cuda"], 2, "cuda:1"),
        (["cuda:2", "cuda:0"], 3, "cuda:0"),
        ([None], 0, "cpu"),
        ([None], 1, "2 processes on this machine, but 1 GPUs"),
        (["cuda:0"], 2, "cuda:0 is one GPU for 2 processes"),
    ],
    ids=str,
)
def test_device_of_a_rank(devices: list[str | None], gpus: int, expected: str, ranked: pytest.MonkeyPatch) -> None:
    ranked.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    ranked.setattr(torch.cuda, "device_count", lambda: gpus)
    ranked.setattr(torch.cuda, "current_device", lambda: 0)
    if " " in expected:
        with pytest.raises(UsageError, match=expected):
            distributed._local_device(devices, SolverParameter())
    else:
        assert str(distributed._local_device(devices, SolverParameter())) == expected


def test_too_few_gpus_named(ranked: pytest.MonkeyPatch) -> None:
    ranked.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--gpu names 2 GPUs for 3 processes on this machine"):
        distributed._local_device(["cuda:0", "cuda:1"], SolverParameter())


def test_ranks_meet_whatever_the_dead_have_left() -> None:
    """As torchrun's store has it behind processes that ended after they met, and before."""
    store, names = dist.HashStore(), []
    for size in (3, 4):
        with ThreadPoolExecutor(size) as pool:
            found = {
                future.result(30) for future in [pool.submit(distributed._meet, store, r, size) for r in range(size)]
            }
        assert len(found) == 1
        names += found
        store.set("ticket 1", "of one that died")
    assert len(set(names)) == 2


def test_launcher_that_is_gone(ranked: pytest.MonkeyPatch) -> None:
    """Killed before this process could ask to be told."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        ranked.setenv(name, "0")
    ranked.setenv(launch.LAUNCHER, str(os.getpid()))  # not 1, whose child an orphaned run of the tests is
    ranked.setattr(contact.ctypes, "CDLL", None)  # else the process of the tests would be told
    with pytest.raises(LostContact, match="the process that launched this one is gone"):
        join(["cpu"], SolverParameter())


def test_launched_processes_have_their_own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torchrun started the launching process, alone: else they would wait for its."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(sys, "argv", ["forcereg", "--debug", "train"])
    script = (
        "import os, sys; names = 'USE_AGENT_STORE', 'RUN_ID', 'RESTART_COUNT'; "
        "sys.exit(sys.argv[1:] != ['--debug', 'train'] or any('TORCHELASTIC_' + n in os.environ for n in names[:2]) "
        f"or 'TORCHELASTIC_' + names[2] not in os.environ or os.environ['{launch.LAUNCHER}'] != str(os.getppid()))"
    )
    start = subprocess.Popen

    def with_script(command: list[str], **rest: Any) -> subprocess.Popen[bytes]:
        return start([command[0], "-c", script, *command[command.index("forcereg") + 1 :]], **rest)

    monkeypatch.setattr(launch.subprocess, "Popen", with_script)
    launch.launch(2, ["train"], launch.effects())


def test_a_port_is_kept_for_one() -> None:
    with launch.free_port() as port, socket.socket() as other, socket.socket() as own:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        own.bind(("", port))
        own.listen()


@pytest.mark.parametrize(
    ("seconds", "effect", "interrupted", "ended"),
    [
        (-1.0, "stop", True, True),
        (60.0, "stop", False, True),
        (-1.0, "snapshot", False, True),
        (-1.0, "none", False, False),
    ],
    ids=["again", "twice-at-once", "saves", "does-nothing"],
)
def test_second_signal_to_the_launcher(
    seconds: float, effect: str, interrupted: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "AGAIN", seconds)
    process = subprocess.Popen(
        ["sleep", "60"],  # not Python, which a signal at its start ends otherwise
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell starts with & ignores it
    )
    try:
        with (
            pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext(),
            launch._forwarded([process], {signal.SIGINT: effect}),
        ):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        if ended:
            assert process.wait(30) == (-signal.SIGTERM if effect == "stop" else -signal.SIGINT)
        else:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_second_request_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once it may be the same signal, which came by two ways; later it is meant, agreed upon or not."""
    for size, seconds, expected in ((1, 60.0, False), (1, -1.0, True), (2, 60.0, False), (2, -1.0, True)):
        monkeypatch.setattr(distributed, "AGAIN", seconds)
        group = Group(0, size)
        assert not group.insists("stop_requested")
        group.request("stop_requested")
        assert group.insists("stop_requested") is expected
        assert not group.insists("snapshot_requested")
        group.withdraw("stop_requested")
        assert not group.insists("stop_requested")


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_that_fails_is_not_taken_down(size: int) -> None:
    """What its group's threads do while the interpreter ends has aborted processes that had said why they end."""
    script = "import atexit, os; from forcereg.solver.launch import leave; atexit.register(os.abort); leave(3)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "WORLD_SIZE": str(size)}, timeout=60)
    assert done.returncode == (3 if size > 1 else -signal.SIGABRT)


@pytest.mark.parametrize("when", ["inside", "behind"])
def test_contact_lost(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the end, where ranks wait for each other."""

    def lose() -> None:
        raise RuntimeError("[x] Connection closed by peer [127.0.0.1]")

    monkeypatch.setattr(Group, "_finish", lambda group: lose())
    with (
        pytest.raises(LostContact, match=r"another rank \(Connection closed by peer\), see what"),
        Group(0, 2).together(),
    ):
        lose() if when == "inside" else None


@pytest.mark.parametrize("by", ["torchrun", "launcher", "one that is gone"])
def test_who_prints_an_error(by: str, ranked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if by != "torchrun":
        ranked.setenv(launch.REPORTS, str(tmp_path))
        ranked.setenv(launch.LAUNCHER, str(os.getppid() if by == "launcher" else os.getpid()))
    assert launch.said_by("bad") == (None if by == "launcher" else "rank 1: bad")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["bad"] * (by == "launcher")


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ({0: "lost", 1: "bad"}, 1, ("rank 1: bad", 1)),
        ({0: "bad", 1: "bad"}, 2, ("bad", 2)),
        ({1: "bad"}, -6, ("rank 1: bad", 1)),
        ({}, -9, ("rank 1 was killed by SIGKILL and the others were ended; go on from", 1)),
        ({0: "lost"}, 7, ("rank 1 ended with exit code 7 and the others were ended", 7)),
    ],
    ids=["one", "all-the-same", "aborted", "killed", "silent"],
)
def test_what_ended_a_launch(said: dict[int, str], code: int, expected: tuple[str, int], tmp_path: Path) -> None:
    for rank, text in said.items():
        (tmp_path / str(rank)).write_text(text)
    failure = launch._failure(1, code, tmp_path)
    assert str(failure).startswith(expected[0])
    assert failure.exit_code == expected[1]


def test_the_guilty_rank_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that ended first because it lost contact; one that ignores all signals is killed."""
    monkeypatch.setattr(launch, "GRACE", 3.0)

    def start(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code])

    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    processes = [start(f"exit({launch.LOST})"), start(deaf), start("import time; time.sleep(1); exit(4)")]
    assert launch._wait(processes) == 2
    launch._end(processes, 3.0)
    assert [process.returncode for process in processes] == [launch.LOST, -9, 4]


@pytest.mark.parametrize("arguments", [("--nproc", "3", "--gpu", "0,1")], ids=" ".join)
def test_usage(arguments: tuple[str, ...], tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("train", "--solver", "s", *arguments, cwd=tmp_path, env=ENV)
    assert (done.returncode, done.stderr.strip()) == (
        2, "forcereg: --nproc is 3, --gpu names 2 GPUs; name one for each process",
    )  # fmt: skip


def test_a_file_is_not_written_by_several(tmp_path: Path) -> None:
    text = (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } } '
        'layer { name: "out" type: "HDF5Output" bottom: "x" bottom: "x" hdf5_output_param { file_name: "out.h5" } }'
    )
    (tmp_path / "net.prototxt").write_text(text)
    net = load_net(tmp_path / "net.prototxt", phase="TRAIN")
    Group().begin(net)
    with pytest.raises(ForceregError, match="'out': writes a file, which several processes can't do together"):
        Group(0, 2).begin(net)
