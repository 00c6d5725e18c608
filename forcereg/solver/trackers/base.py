"""What all trackers share: which numbers of an event are told under which names, and what is done when one fails."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from forcereg.errors import ForceregError, UsageError, printable
from forcereg.registry import tracker
from forcereg.system.events import Event
from forcereg.system.plugins import told

if TYPE_CHECKING:
    from forcereg.net.scoring import Output

ENDS = {"done": "finished", "stopped": "stopped", "error": "failed"}
"""Events that end a run, and how it ended."""


class Tracker:
    """Observer that hands a run's numbers on. One is a subclass with `@tracker(name)` and these methods:

    `__init__(target, said)` opens it: `target` is what stands behind the name (a folder, an address, a project; '' for
    the tracker's own default), `said` what errors call it. It raises ForceregError if that can't be. `begin(settings)`
    is told the run's settings, `write(values, iteration)` numbers by name, `end(how)` that the run is "finished",
    "stopped" or "failed"; `close` comes last. What they raise ends the run if it is a ForceregError, else there is one
    warning, and nothing more is told.
    """

    def __init__(self, target: str, said: str) -> None:
        self.target, self.said = target, said
        self._lost = False

    def begin(self, settings: Mapping[str, Any]) -> None:
        """The run begins."""

    def write(self, values: Mapping[str, float], iteration: int) -> None:
        """Numbers of one iteration."""
        raise NotImplementedError(f"{type(self).__name__} has no write")

    def end(self, how: str) -> None:
        """The run is over."""

    def close(self) -> None:
        """Nothing more comes."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._heard():
            self.close()

    def __call__(self, event: Event) -> None:
        if self._lost:
            return
        with self._heard():
            if event.kind == "start":
                self.begin({"net_name": event.net, **event.fields.get("settings", {})})
            if values := dict(scalars(event)):
                self.write(values, event.iteration)
            if event.kind in ENDS:
                self.end(ENDS[event.kind])

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """A service that is gone doesn't end a training of days."""
        try:
            yield
        except ForceregError:
            raise
        except Exception as error:
            if not self._lost:
                warnings.warn(f"{self.said}: {told(error)}; the run goes on without it", stacklevel=4)
            self._lost = True


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Name -> number of what an event tells; nothing of most kinds."""
    kind = event.kind
    if kind == "train":
        yield "train/loss", event.loss
        yield "train/lr", event.rate
        yield from _outputs("train/output", event.outputs)
    elif kind == "test":
        yield from _outputs(f"test_{event.net}", event.outputs)
    elif kind == "best":
        yield f"best/{event.output}", event.value
    elif kind == "force":
        for layer in event.layers:
            yield from ((f"force/{layer['layer']}/{name}", layer[name]) for name in layer if name != "layer")
    elif kind == "sparsity":
        for layer in event.layers:
            yield from _sparsity(layer)
        yield "train/regularization", event.regularization
    elif kind == "ranks":
        yield from ((f"rank/{layer['layer']}", layer["rank"]) for layer in event.layers)


def _outputs(group: str, outputs: Sequence[Output]) -> Iterator[tuple[str, float]]:
    names = [output.name for output in outputs]
    for index, output in enumerate(outputs):
        # a blob of several elements has as many outputs of its name
        suffix = f"_{index}" if names.count(output.name) > 1 else ""
        yield f"{group}/{output.name}{suffix}", output.value


def _sparsity(layer: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    name = f"{layer['layer']}/{layer['index']}" if layer["index"] else layer["layer"]
    yield from ((f"sparsity/{name}/{kind}", layer[kind]) for kind in ("element", "column", "row"))
    yield from ((f"sparsity/{name}/block_{one['x']}x{one['y']}", one["percent"]) for one in layer["blocks"])


def missing(said: str, package: str, extra: bool = True) -> ForceregError:
    """The error for a package that isn't there; `extra`: whether one of forcereg's, of the same name, brings it."""
    wanted = f'"forcereg[{package}]"' if extra else package
    return ForceregError(f"{said} needs the {package} package; install it with pip install {wanted}")


def check(asked: str, said: str = "--tracker") -> tuple[str, str]:
    """NAME or NAME:TARGET, as these two. Raises UsageError for no tracker's name."""
    name, _, target = asked.partition(":")
    if name not in tracker:
        try:
            tracker.get(name)
        except ForceregError as error:
            raise UsageError(f"{said} is '{printable(asked)}': {error}") from None
    return name, target


def opened(asked: str, said: str = "--tracker") -> Tracker:
    """The tracker that NAME or NAME:TARGET means. Raises UsageError, ForceregError if it can't be opened."""
    name, target = check(asked, said)
    return tracker.get(name)(target, f"{said} {asked}")
