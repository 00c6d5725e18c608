"""Curves for TensorBoard: loss, rate, test scores and the state of coordinated layers, as files in a folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

from forcereg.errors import ForceregError, UsageError, printable, storable
from forcereg.registry import tracker
from forcereg.solver.trackers.base import Tracker, missing


@tracker("tensorboard")
class TensorBoard(Tracker):
    """Writes to `folder`.

    Raises ForceregError if the tensorboard package is missing or the folder cannot be written, also later.
    """

    def __init__(self, folder: str | Path, said: str = "--log-dir") -> None:
        super().__init__(str(folder), said)
        if not str(folder):
            raise UsageError(f"{said}: no folder is named; expected one, as in tensorboard:logs")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing(said, "tensorboard") from None
        name = storable(folder)
        self._hook = threading.excepthook
        # SummaryWriter writes in a thread, whose error would be a traceback between the log's lines
        threading.excepthook = self._on_thread_error
        try:
            self._writer = SummaryWriter(name)
        except OSError as error:
            threading.excepthook = self._hook
            raise self._refused(error) from None

    def write(self, values: Mapping[str, float], iteration: int) -> None:
        try:
            for tag, value in values.items():
                self._writer.add_scalar(printable(tag), value, iteration)
        except OSError as error:
            raise self._refused(error) from None

    def end(self, how: str) -> None:
        try:
            self._writer.flush()
        except OSError as error:
            raise self._refused(error) from None

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        # the writer's thread hands its error to the next call here, which tells it in one line
        if not issubclass(args.exc_type, OSError):
            self._hook(args)

    def _refused(self, error: OSError) -> ForceregError:
        where = self.said if self.target in self.said else f"{self.said} {self.target}"
        return ForceregError(f"{where}: {error.strerror}; choose a folder that can be written")

    def close(self) -> None:
        """Writes what is left; an error here has been told, or comes after all else is done."""
        with contextlib.suppress(OSError):
            self._writer.close()
        threading.excepthook = self._hook
