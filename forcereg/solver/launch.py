"""Starts a training by several processes on this machine, as torchrun does, and reports in one line what ended it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from forcereg.errors import ForceregError
from forcereg.system.isolation import python

REPORTS, LAUNCHER = "FORCEREG_REPORTS", "FORCEREG_LAUNCHER"
"""Name the folder into which a launched process writes the error that it ends with, as its rank, and its parent."""
LOST = 3
"""Exit code of a process that ends because another one did."""
GRACE, HASTE, PAUSE = 10.0, 3.0, 0.05
"""Seconds that processes get to end when another one has, the same once they were told to stop; between two looks."""
AGAIN = 1.0
"""Seconds behind a signal to stop after which another one is meant, and not the same one passed on twice."""


_AGENT = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID")


class Failed(ForceregError):
    """What the first process that failed said."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


def in_group() -> bool:
    """Whether this process is one of several that train together."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def restarted() -> bool:
    """Whether torchrun started this process to take the place of one that failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def said_by(message: str) -> str | None:
    """The error that this process ends with as one of its group's; None if the launching process will print it."""
    rank = os.environ.get("RANK")
    if not in_group() or rank is None:
        return message
    try:
        if os.environ[LAUNCHER] != str(os.getppid()):
            raise KeyError  # nobody will
        Path(os.environ[REPORTS], rank).write_text(message, errors="backslashreplace")
    except (KeyError, OSError):
        return f"rank {rank}: {message}"
    return None


def leave(code: int) -> NoReturn:
    """Ends this process; if it was one of a group's, whose threads may abort or never end, without taking it down."""
    if in_group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def effects(sigint: str = "stop", sighup: str = "snapshot") -> dict[int, str]:
    """What signals do: "stop", "snapshot" or "none"."""
    found: dict[int, str] = {signal.SIGINT: sigint, signal.SIGTERM: "stop"}
    return {**found, signal.SIGHUP: sighup} if hasattr(signal, "SIGHUP") else found


@contextmanager
def held(numbers: Collection[int], back: bool = True) -> Iterator[None]:
    """Signals are held `back` inside the block, and in processes started there until these let them through; or not."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # a mask, not a handler: exec keeps it, so that a process is deaf until it says otherwise
    mask = signal.pthread_sigmask(signal.SIG_BLOCK if back else signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def launch(count: int, arguments: Sequence[str], meant: Mapping[int, str]) -> None:
    """Runs `forcereg ARGUMENTS` in `count` processes until all have ended.

    Each finds its rank in the environment under torchrun's names. `meant`: the signals' effects. All are told to stop,
    by SIGTERM, rank 0 alone to save, of which the others learn by it; asked to stop again this raises
    KeyboardInterrupt. When one process fails the others are ended, and `Failed` says which one it was and why.
    """
    with tempfile.TemporaryDirectory(prefix="forcereg-") as folder, free_port() as port:
        # torchrun, whose only process this may be, keeps no store for these
        inherited = {name: value for name, value in os.environ.items() if name not in _AGENT}
        common = {**inherited, **environment(count, port), REPORTS: folder, LAUNCHER: str(os.getpid())}
        # the launcher's own option, ahead of the command, isn't among its arguments
        debug = ["--debug"] if "--debug" in sys.argv else []
        command = [*python(), "-m", "forcereg", *debug, *arguments]
        processes: list[subprocess.Popen[bytes]] = []
        waited = False
        with _forwarded(processes, meant) as told:
            try:
                with held([number for number in meant if number != signal.SIGTERM]):
                    for rank in range(count):
                        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                        # a session of its own: Ctrl-C in the terminal comes once, from here
                        processes.append(subprocess.Popen(command, env=env, start_new_session=True))
                for process in processes if told else ():  # while not all had been started
                    process.send_signal(signal.SIGTERM)
                failed = _wait(processes, told)
                waited = failed is None or processes[failed].returncode == LOST
            finally:
                _end(processes, 0 if waited else HASTE if told else GRACE)
        if failed is not None and told and processes[failed].returncode == -signal.SIGTERM:
            raise Failed("interrupted", 128 + told[0])  # before it could hear signals
        if failed is not None:
            raise _failure(failed, processes[failed].returncode, Path(folder))


@contextmanager
def free_port() -> Iterator[int]:
    """A port that no one else is given inside the block, though one process can listen there."""
    with socket.socket() as held:
        # bound but not listening: nobody else is given the port, rank 0 may listen on it all the same
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def environment(count: int, port: int) -> dict[str, str]:
    """What `count` processes on this machine find each other by, but for their ranks."""
    # what torch would find by the host's name may not be reachable
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if os.path.exists("/sys/class/net/lo") else {}
    # as torchrun does not, which sets 1: ranks on one machine share its cores
    threads = str(max(1, (os.cpu_count() or 1) // count))
    defaults = {"OMP_NUM_THREADS": threads, **loopback}
    return {
        **{name: value for name, value in defaults.items() if name not in os.environ},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }


@contextmanager
def _forwarded(processes: Sequence[subprocess.Popen[bytes]], meant: Mapping[int, str]) -> Iterator[list[int]]:
    """Passes signals on inside the block; gives those that ask to stop, in order."""
    told: list[int] = []
    since: list[float] = []

    def forward(number: int, frame: Any) -> None:
        if meant[number] == "snapshot" and processes:
            processes[0].send_signal(number)
        if meant[number] == "stop":
            told.append(number)
            since.append(time.monotonic())
            for process in processes:
                process.send_signal(signal.SIGTERM)
            if since[-1] - since[0] > AGAIN:
                # asked again: whoever asks doesn't want to wait for snapshots
                raise KeyboardInterrupt

    before = {number: signal.signal(number, forward) for number in meant}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], told: Sequence[int] = ()) -> int | None:
    """The rank that failed first, None if all have succeeded; the others may still run.

    One that fails because it lost contact with another waits for that one's turn, not for long if all were `told` to
    stop; as do those that succeeded.
    """
    since = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        guilty = [rank for rank in failed if codes[rank] != LOST]
        if guilty:
            return guilty[0]
        # from the first end on: others may need a moment to notice
        since = since or (None if all(code is None for code in codes) else time.monotonic())
        if None not in codes or (since and time.monotonic() - since > (HASTE if told else GRACE)):
            return failed[0] if failed else None
        time.sleep(PAUSE)


def _end(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ends what still runs: those that wait for a lost rank notice it themselves, if they are given the time.

    One that the system doesn't let go is left behind.
    """
    deadline = time.monotonic() + grace
    try:
        while any(process.poll() is None for process in processes):
            left = deadline - time.monotonic()
            if left < -GRACE:
                return
            for process in processes:
                if process.poll() is None:
                    # SIGTERM at half time, so that a rank can still flush; SIGKILL at its end
                    process.kill() if left < 0 else process.terminate() if left < grace / 2 else None
            time.sleep(PAUSE)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def _failure(rank: int, code: int, folder: Path) -> Failed:
    try:
        said = (folder / str(rank)).read_text()
    except OSError:
        said = ""
    # a process that was killed couldn't say why
    if code < 0 and not said:
        said = f"was killed by {signal.Signals(-code).name}"
    elif not said:
        said = f"ended with exit code {code}"
    else:
        same = all(one.read_text() == said for one in folder.iterdir()) and len(list(folder.iterdir())) > 1
        said = said if same else f"rank {rank}: {said}"
        return Failed(said, max(1, code))
    hint = "go on from the last snapshot with --resume auto"
    return Failed(f"rank {rank} {said} and the others were ended; {hint}", max(1, code))
