"""Files that one process holds at a time, on machines that share their folder too; who dies lets go.

By a hard link, which every network file system makes for one process alone and with its whole content. Not by locks of
the system: some mounts take them for each machine by itself, others not at all. A claim on `x` is the file `x.0`, which
says who holds it. Nobody deletes another's, which two could do at once, the second one a new one: whoever takes over
from a dead one makes `x.1`, once; the highest number counts.

A process of the same machine is dead when the system says so, one of another machine once its file hasn't been touched
for `PATIENCE` by the clock of whoever looks.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.system import sidefiles
from forcereg.system.background import Worker
from forcereg.system.files import refused

BEAT, PATIENCE = 10.0, 150.0
"""Seconds between two signs of life, and without any until one of another machine is taken for dead; NFS shows what
happens elsewhere up to a minute late."""
LOOK, SELDOM = 0.01, 0.1
"""Seconds between two looks at what another holds, at first and later."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class Lost(ForceregError):
    """Another process has taken over, since this one gave no sign of life."""


@dataclass(frozen=True)
class Owner:
    """Who holds a claim. `system` tells its machine, boot and process numbers from others; `group`: what it is one of.

    `started`: when the process did, in the system's ticks; numbers of processes come again.
    """

    host: str
    system: str
    pid: int
    started: int
    mark: str
    group: str = ""

    @property
    def gone(self) -> bool | None:
        """Whether its process has ended; None for one that can't be seen from here."""
        return None if self.system != _system() else self.started != _started(self.pid)


@functools.cache
def _system() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # containers of one machine don't see each other's processes
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _started(pid: int) -> int:
    """When a process started; -1 for none, and for one that has ended and is only not yet waited for."""
    try:
        # its name, in brackets, may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return -1
    except (OSError, ValueError):
        return -1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        pass
    return 0


class Watch:
    """What this process has seen of others' signs of life."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[object, float]] = {}

    def is_held(self, path: Path) -> bool:
        """Whether a process, as far as can be seen from here, holds `path` now."""
        newest = _newest(path)
        return newest is not None and not self.is_dead(_file(path, newest))

    def is_dead(self, file: Path) -> bool:
        """Whether a claim's file is of a process that has ended."""
        try:
            owner, beat = _owner(file), os.stat(file).st_mtime_ns
        except FileNotFoundError:
            return False  # it has let go meanwhile
        gone = None if owner is None else owner.gone
        if gone is not None:
            return gone
        sign, now = (owner, beat), time.monotonic()
        known = self._seen.get(file)
        if known is None or known[0] != sign:
            known = self._seen[file] = (sign, now)
        return now - known[1] > PATIENCE


class Claim:
    """A path that this process holds, until `release`; a thread of it gives the signs of life."""

    def __init__(self, path: Path, number: int, owner: Owner) -> None:
        self._path, self._number, self._owner = path, number, owner
        self._lost, self._end = False, threading.Event()
        Worker(f"claim {path.name}", self._live, (), self._end.set).start()

    @property
    def deaths(self) -> int:
        """How many processes of the same group have died that held it one behind the other, until now."""
        count = 0
        for number in reversed(range(self._number)):
            owner = _owner(_file(self._path, number))
            if owner is None or not owner.group or owner.group != self._owner.group:
                break
            count += 1
        return count

    def check(self, look: bool = False) -> None:
        """Raises Lost if another process has taken over, as far as is known, or by a look at the folder."""
        if self._lost or (look and not self.still()):
            raise Lost(f"{self._path.parent}: another process has taken over, since this one stood still")

    def still(self) -> bool:
        """Whether it is held, by a look at the folder."""
        self._lost = self._lost or _newest(self._path) != self._number
        return not self._lost

    def release(self) -> None:
        """Lets go; nothing happens if it is another's by now."""
        self._end.set()
        if self.still():
            for number in range(self._number + 1):  # the own one last: until then nobody begins at 0
                with contextlib.suppress(OSError):
                    _file(self._path, number).unlink()
        self._lost = True

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            with contextlib.suppress(OSError):  # a network that is away comes again
                if not self.still():
                    return
                os.utime(_file(self._path, self._number))


def claim(path: Path, watch: Watch, group: str = "") -> Claim | None:
    """A claim on `path`, as one of a `group`; None if another process, or this one, holds it.

    Raises ForceregError if the system refuses.
    """
    newest = _newest(path)
    if newest is not None and not watch.is_dead(_file(path, newest)):
        return None
    number = 0 if newest is None else newest + 1
    owner = Owner(platform.node(), _system(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex, group)
    if not _made(_file(path, number), json.dumps(asdict(owner))):
        return None
    # one that only stood still may have let go meanwhile, and another begun at 0
    if _newest(path) == number and (not number or _file(path, number - 1).exists()):
        return Claim(path, number, owner)
    _file(path, number).unlink(missing_ok=True)
    return None


@contextlib.contextmanager
def held(path: Path, watch: Watch | None = None, group: str = "") -> Iterator[Claim]:
    """Holds `path` until the block ends, once nobody else does. Raises ForceregError if the system refuses."""
    watch, pause = watch or Watch(), LOOK
    while (found := claim(path, watch, group)) is None:
        time.sleep(pause)
        pause = min(2 * pause, SELDOM)
    try:
        yield found
    finally:
        found.release()


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _newest(path: Path) -> int | None:
    """The highest number of a claim on a path, None for none."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    found = [re.fullmatch(rf"{re.escape(path.name)}\.(0|[1-9]\d{{0,8}})", name, re.ASCII) for name in names]
    return max((int(match[1]) for match in found if match), default=None)


def _owner(file: Path) -> Owner | None:
    """Who holds a claim, None if the file doesn't say so. Raises FileNotFoundError."""
    try:
        return sidefiles.of_form(sidefiles.read_json(file, 1 << 16), Owner)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None


def _made(file: Path, text: str) -> bool:
    """Makes a file with its whole content, if there is none."""
    temp = file.with_name(f".{file.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temp.write_text(text)
        try:
            os.link(temp, file)
            return True
        except OSError as error:
            # an answer that got lost on the way is asked for again: then the link is there, and ours
            if os.stat(temp).st_nlink == 2:
                return True
            if error.errno == errno.EEXIST:
                return False
            if error.errno not in _NO_LINKS:
                raise
        return _made_without_links(file, text)
    except OSError as error:
        raise refused(file, error) from None
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def _made_without_links(file: Path, text: str) -> bool:
    # who reads it before it is written takes its owner for one that can't be seen, which ends no claim at once
    try:
        with open(file, "x") as made:
            made.write(text)
    except FileExistsError:
        return False
    return True
