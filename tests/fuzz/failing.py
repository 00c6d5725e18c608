"""`python -m tests.fuzz.failing AT FAULT REPORT ARGS...`: forcereg, in which one call that writes in this folder fails.

AT counts the calls (opening for writing, write, flush to disk, close, rename, making a folder ...) from 0. FAULT is the
name of an errno, or "SHORT": a write takes a part of the bytes and the next one fails as on a full disk; calls that
follow work again. REPORT becomes the list of the calls, one a line.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HERE = os.path.realpath(os.getcwd())


class Faults:
    """Counts calls and lets one fail."""

    def __init__(self, at: int, fault: str, report: Path) -> None:
        self.at, self.fault, self.report = at, fault, os.open(report, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        self.count, self.short, self.write = 0, False, os.write

    def reach(self, name: str, where: Any) -> bool:
        """Whether a write is to be short; raises OSError if a call fails."""
        path = place(where)
        if path is None:
            return False
        if self.short:  # the disk is full by now
            self.short = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.write(self.report, f"{name} {os.path.basename(path)!a}\n".encode())
        self.count += 1
        if self.count - 1 != self.at:
            return False
        if self.fault == "SHORT" and name == "write":
            self.short = True
            return True
        code = errno.ENOSPC if self.fault == "SHORT" else getattr(errno, self.fault)
        raise OSError(code, os.strerror(code), *([] if isinstance(where, int) else [os.fspath(where)]))


def place(where: object) -> str | None:
    """The path of a file or descriptor below this folder."""
    try:
        path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.path.abspath(os.fsdecode(where))  # type: ignore[call-overload]
    except (OSError, TypeError):
        return None
    folder = os.path.realpath(os.path.dirname(path))
    return path if folder == HERE or folder.startswith(HERE + os.sep) else None


def install(faults: Faults) -> None:
    """Puts the faults into what Python's libraries write by."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            if faults.reach("write", self.fileno()):
                data = memoryview(data).cast("B")[: max(1, len(memoryview(data).cast("B")) // 2)]
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            faults.reach("truncate", self.fileno())
            return super().truncate(size)

        def close(self) -> None:
            where = None if self.closed else place(self.fileno())
            super().close()  # what a failing close leaves is closed
            if where is not None and not sys.is_finalizing():
                faults.reach("close", where)

    real_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or place(file) is None:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            faults.reach("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind: Any = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    builtins.open = io.open = opened  # type: ignore[assignment]

    def patch(name: str, writes: bool = False) -> None:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            if name == "open" and not (args[1] if len(args) > 1 else named.get("flags", 0)) & WRITING:
                return real(*args, **named)
            if faults.reach("write" if writes else name, args[0]) and writes:
                data = memoryview(args[1]).cast("B")
                args = (args[0], data[: max(1, len(data) // 2)], *args[2:])
            return real(*args, **named)

        setattr(os, name, call)

    for name in ("open", "fsync", "fdatasync", "replace", "rename", "mkdir", "truncate", "ftruncate", "chmod"):
        patch(name)
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]  # so that it copies by what is patched
    for name in ("write", "pwrite"):
        patch(name, writes=True)
    install_lmdb(faults)


def install_lmdb(faults: Faults) -> None:
    """LMDB writes by itself; here its calls fail with its own error for a full disk."""
    try:
        import lmdb
    except ImportError:
        return

    def failing(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            try:
                faults.reach(f"lmdb.{name}", os.path.join(HERE, "data.mdb"))
            except OSError as error:
                raise lmdb.DiskError(f"mdb_{name}: {error.strerror}") from None
            return real(*args, **named)

        return call

    class Through:
        """The other's methods, but for those of its own."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    class Transaction(Through):
        def __enter__(self) -> Transaction:
            self._inner.__enter__()
            return self

        def __exit__(self, *told: Any) -> Any:
            if told[0] is None:
                failing(lambda: None, "txn_commit")()
            return self._inner.__exit__(*told)

    class Environment(Through):
        def begin(self, *args: Any, **named: Any) -> Any:
            inner = self._inner.begin(*args, **named)
            return Transaction(inner) if named.get("write") else inner

        def sync(self, *args: Any) -> None:
            failing(self._inner.sync, "env_sync")(*args)

    real = lmdb.open

    def opened(*args: Any, **named: Any) -> Any:
        return real(*args, **named) if named.get("readonly") else Environment(failing(real, "env_open")(*args, **named))

    lmdb.open = opened


def main(at: str, fault: str, report: str, *args: str) -> None:
    from forcereg.__main__ import main as forcereg

    faults = Faults(int(at), fault, Path(report))
    install(faults)
    forcereg(list(args))


if __name__ == "__main__":
    main(*sys.argv[1:])
