"""A run's events as JSON, one object a line, for programs that follow or compare runs.

Every object has `event`, its kind, and `time`, seconds since 1970; the others are the fields that
`forcereg.system.events.Event` lists: `iteration`, `loss`, `rate`, ... An output is `{"name", "value", "weight"}`.
Numbers that JSON lacks are the strings "nan", "inf" and "-inf". There is no line for `progress`; `error` is the
last one of a run that failed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.system.events import Event
from forcereg.system.files import refused, write_all

PIECE = 1 << 16
"""Bytes that are read at once."""


class JsonLog:
    """Observer that writes to `path`, line by line; a resumed run goes on behind what is there.

    As a context manager it is closed behind the run: `forcereg.train("solver.prototxt", observer=JsonLog("log.json"))`.
    What comes before the run starts or is restored waits until it is known which. Raises ForceregError if the file
    cannot be written, also later.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        # a fresh run replaces the file and a resumed one goes on behind it: known only by its first events
        self._waiting: list[str] | None = []
        try:
            self._file = _opened(path)
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            return
        line = json.dumps({"event": event.kind, "time": round(time.time(), 3), **_plain(event.fields)}) + "\n"
        if self._waiting is None:
            self._write(line)
        else:
            self._waiting.append(line)
            if event.kind in ("start", "restore", "error"):
                self._begin(fresh=event.kind == "start")

    def _begin(self, fresh: bool) -> None:
        waiting, self._waiting = self._waiting or [], None
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):  # a pipe or device keeps what it has got
            try:
                self._file.truncate(0 if fresh else self._whole_lines())
            except OSError as error:
                raise self._refused(error) from None
        self._write("".join(waiting))

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last whole line: a killed run may have left a part of one."""
        start = self._file.seek(0, os.SEEK_END)
        # from the end, in pieces: the log of a long run may be large, its last line isn't
        while start:
            end, start = start, max(0, start - PIECE)
            self._file.seek(start)
            if (place := self._file.read(end - start).rfind(b"\n")) >= 0:
                return start + place + 1
        return 0

    def _write(self, text: str) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            write_all(self._file, text.encode())
        except OSError as error:
            with contextlib.suppress(OSError):  # a pipe or device keeps what it has got
                self._file.truncate(before)  # no part of a line, which the next one would follow
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> ForceregError:
        return ForceregError(f"--log-json: {refused(self._path, error)}")

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        if self._waiting:
            self._begin(fresh=False)
        try:
            self._file.close()
        except OSError as error:
            raise self._refused(error) from None


def _opened(path: str | Path) -> Any:
    """The file to append to, unbuffered; a pipe only while somebody reads it, as writing would wait for that."""
    if not (os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)):
        return open(path, "ab+", buffering=0)
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    # opened without waiting, to fail if nobody reads; written to like any file
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb", buffering=0)


def _plain(value: Any) -> Any:
    """`value` made of what JSON has."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
