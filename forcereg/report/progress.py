"""How work goes: a bar on a terminal or lines for its steps, and what it has to say besides."""

from __future__ import annotations

import time
import warnings
from typing import Any

from forcereg.errors import printable
from forcereg.system.events import Event
from forcereg.system.terminal import bar, echo, on_terminal

PAUSE = 5.0
"""Seconds between lines of steps of which many take no time."""


class Bars:
    """Observer that shows the progress of tasks whose steps are short: a bar each on a terminal, nothing elsewhere."""

    STRIDE = 0.1  # seconds: drawing more often than this costs more than it shows

    def __init__(self) -> None:
        self._bar: Any = None
        self._task, self._row, self._drawn = "", None, 0.0

    def __enter__(self) -> Bars:
        if on_terminal():
            # here: rich takes a while to load, and only a terminal needs it
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

            # names may have brackets, which are markup to rich
            title = TextColumn("{task.description}", markup=False)
            self._bar = bar(title, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._bar is None or event.kind != "progress":
            return
        if event.done == 0 or event.task != self._task:
            self._begin(event)
        if event.done == event.most or time.monotonic() - self._drawn >= self.STRIDE:
            self._drawn = time.monotonic()
            self._bar.update(self._row, completed=event.done)

    def _begin(self, event: Event) -> None:
        """The bar of a task in place of the one before."""
        if self._row is not None:
            self._bar.remove_task(self._row)
        self._task = event.task
        self._row = self._bar.add_task(printable(event.task), total=event.most)


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

    def done(self, text: str) -> None:
        """One more step."""
        self._count += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, last=printable(text))
        elif text and time.monotonic() - self._told >= self._pause:
            self._told = time.monotonic()
            echo(f"{self._title} {self._count} of at most {self._most}: {text}", err=True)


FEW = {"net", "trial"}
"""Tasks of few long steps: a line each, where there is no terminal."""


class Shown:
    """An observer that shows how work goes on stderr: each task's steps, notes and warnings.

    A task begins with its first event and ends with the next one's, or with the `with` block. Steps of which there is
    nothing to say move the bar only.
    """

    def __init__(self) -> None:
        self._steps: Steps | None = None
        self._task = ""

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, event: Event) -> None:
        """One of the events of `Tell`."""
        if event.kind == "progress":
            # a count that begins again is a new task, also under the same name
            if self._steps is None or event.task != self._task or not event.done:
                self._begin(event)
            if event.done:
                self._steps.done(event.text)  # type: ignore[union-attr]
        elif event.kind == "note":
            echo(event.text, err=True)
        elif event.kind == "warning":
            # Python's way, so that filters hold and each is told once
            warnings.warn(event.text, stacklevel=2)

    def _begin(self, event: Event) -> None:
        self._end()
        self._task = event.task
        self._steps = Steps(event.task, event.most, 0.0 if event.task in FEW else PAUSE).__enter__()

    def _end(self) -> None:
        if self._steps is not None:
            self._steps.__exit__()
        self._steps = None
