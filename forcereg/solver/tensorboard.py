"""Curves for TensorBoard from a run's events: loss, rate, test scores and the state of coordinated layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, printable, storable
from forcereg.net.scoring import Output
from forcereg.system.events import Event


class TensorBoard:
    """Observer that writes to `folder`.

    Raises ForceregError if the tensorboard package is missing or the folder cannot be written, also later.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ForceregError(
                '--log-dir needs the tensorboard package; install it with pip install "forcereg[tensorboard]"'
            ) from None
        name = storable(folder)
        self._folder, self._hook = folder, threading.excepthook
        # SummaryWriter writes in a thread, whose error would be a traceback between the log's lines
        threading.excepthook = self._on_thread_error
        try:
            self._writer = SummaryWriter(name)
        except OSError as error:
            threading.excepthook = self._hook
            raise self._refused(error) from None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        try:
            self._write(event)
        except OSError as error:
            raise self._refused(error) from None

    def _write(self, event: Event) -> None:
        if event.kind == "train":
            self._writer.add_scalar("train/loss", event.loss, event.iteration)
            self._writer.add_scalar("train/lr", event.rate, event.iteration)
            self._outputs("train/output", event.outputs, event.iteration)
        elif event.kind == "test":
            self._outputs(f"test_{event.net}", event.outputs, event.iteration)
        elif event.kind == "force":
            for layer in event.layers:
                for name in layer.keys() - {"layer"}:
                    self._scalar(f"force/{layer['layer']}/{name}", layer[name], event.iteration)
        elif event.kind == "sparsity":
            for layer in event.layers:
                self._sparsity(layer, event.iteration)
            self._scalar("train/regularization", event.regularization, event.iteration)
        elif event.kind == "ranks":
            for layer in event.layers:
                self._scalar(f"rank/{layer['layer']}", layer["rank"], event.iteration)
        elif event.kind == "done":
            self._writer.flush()

    def _sparsity(self, layer: Mapping[str, Any], iteration: int) -> None:
        name = f"{layer['layer']}/{layer['index']}" if layer["index"] else layer["layer"]
        for kind in ("element", "column", "row"):
            self._scalar(f"sparsity/{name}/{kind}", layer[kind], iteration)
        for one in layer["blocks"]:
            self._scalar(f"sparsity/{name}/block_{one['x']}x{one['y']}", one["percent"], iteration)

    def _outputs(self, group: str, outputs: list[Output], iteration: int) -> None:
        names = [output.name for output in outputs]
        for index, output in enumerate(outputs):
            # a blob of several elements has as many outputs of its name
            suffix = f"_{index}" if names.count(output.name) > 1 else ""
            self._scalar(f"{group}/{output.name}{suffix}", output.value, iteration)

    def _scalar(self, tag: str, value: float, iteration: int) -> None:
        self._writer.add_scalar(printable(tag), value, iteration)

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        # the writer's thread hands its error to the next call here, which tells it in one line
        if not issubclass(args.exc_type, OSError):
            self._hook(args)

    def _refused(self, error: OSError) -> ForceregError:
        return ForceregError(f"--log-dir {self._folder}: {error.strerror}; choose a folder that can be written")

    def close(self) -> None:
        """Writes what is left; an error here has been told, or comes after all else is done."""
        with contextlib.suppress(OSError):
            self._writer.close()
        threading.excepthook = self._hook
