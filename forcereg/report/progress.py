"""Progress of work that takes a few long steps: a bar on a terminal, lines otherwise."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from forcereg.errors import printable
from forcereg.system.terminal import bar, echo, on_terminal

P = ParamSpec("P")
T = TypeVar("T")


PAUSE = 5.0
"""Seconds between lines of steps of which many take no time."""


class Steps:
    """Tells on stderr what each step came to; `most` steps at most.

    Where there is no terminal, a line each, or of many steps one in `pause` seconds.
    """

    def __init__(self, title: str, most: int, pause: float = 0.0) -> None:
        self._title, self._most, self._count = title, most, 0
        self._pause, self._told = pause, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Steps:
        if on_terminal():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            last = TextColumn("{task.fields[last]}", markup=False)
            self._bar = bar(*columns, last)
            self._task = self._bar.add_task(self._title, total=self._most, last="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def around(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, with the progress shown while it runs."""

        @functools.wraps(function)
        def call(*args: P.args, **named: P.kwargs) -> T:
            with self:
                return function(*args, **named)

        return call

    def done(self, text: str) -> None:
        """One more step."""
        self._count += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, last=printable(text))
        elif time.monotonic() - self._told >= self._pause:
            self._told = time.monotonic()
            echo(f"{self._title} {self._count} of at most {self._most}: {text}", err=True)
