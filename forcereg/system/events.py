"""What happens in a run, as records: the solver emits them, logs and plots are views of them.

An observer is a callable that takes an `Event`. Values are plain numbers and strings, read from the
device once per event.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
KINDS = frozenset({
    "best", "debug", "decision", "done", "enough", "error", "final", "force", "gradients", "left", "masks", "note",
    "progress", "pruning", "ranks", "rate", "restore", "rollback", "saved", "scale", "snapshot", "sparsity", "start",
    "step", "stopped", "test", "test_start", "train", "warning", "weights",
})  # fmt: skip
"""What may happen while a net is trained; see forcereg/snapshot/README.md."""
ALIASES = {"iteration": "progress", "display": "train"}
"""What hooks may say for a kind: when it is told."""


@dataclass(frozen=True)
class Event:
    """One record: `kind` says which of `fields` there are.

    start(net, policy, settings) · test_start(net, iteration) · test(net, iteration, outputs, loss) ·
    train(iteration, loss, outputs, rate, speed, seconds, interval, left) · left(iteration, max_iter, seconds) ·
    step(iteration, current_step) · rate(iteration, rate) · scale(iteration, scale, good, skipped) ·
    debug(iteration, rows, norms) · final(iteration, loss) · force(iteration, layers; if measured ratio, warned) ·
    ranks(iteration, layers) · pruning(iteration, layers) · decision(iteration, layer, decision, share, text) ·
    snapshot(model, state, iteration, binary; with ema_decay average) · saved(model, state, iteration) ·
    restore(state, iteration) · weights(file, report) · best(iteration, net, output, value, way, before, model) ·
    enough(iteration, reason, text) · rollback(iteration, from_iteration, state, done, times, factor, text) ·
    gradients(ranks, seconds, alone, bandwidth, given, schemes, share, text) · masks(layers) ·
    sparsity(iteration, layers, regularization, total) ·
    progress(iteration, max_iter) · note(text) · warning(text) · stopped() · done() · error(text)

    Outside training `progress` is progress(task, done, most, text): `done` of at most `most` steps of the task (None:
    nobody knows), and what the last one came to; scoring tells batch(index, outputs) of every batch.

    >>> def watch(event: forcereg.Event) -> None:
    ...     if event.kind == "test":
    ...         print(event.iteration, [output.name for output in event.outputs])
    >>> forcereg.Solver("solver.prototxt", observers=[watch]).solve()
    0 ['accuracy', 'loss']
    10 ['accuracy', 'loss']
    20 ['accuracy', 'loss']
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            # not self.fields: while it is being unpickled there are none, and asking would come here again
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


Observer = Callable[[Event], None]


class Tell:
    """Tells an observer how work goes; without one a warning is a Python warning, and the rest isn't told."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer

    def __reduce__(self) -> tuple[Any, ...]:
        # what is kept of a result goes elsewhere, the observer (a bar, a log) stays
        return Tell, ()

    def progress(self, task: str, done: int, most: int | None, text: str = "") -> None:
        """`done` of at most `most` steps ("net", "layer") are done; `text`: what the last one came to."""
        self._emit("progress", task=task, done=done, most=most, text=text)

    def steps(self, task: str, most: int) -> Callable[[str], None]:
        """Begins a task of at most `most` steps; to be called with what each came to when it is done."""
        self.progress(task, 0, most)
        counted = itertools.count(1)
        return lambda text: self.progress(task, next(counted), most, text)

    def track(self, items: Iterable[T], task: str, total: int | None) -> Iterable[T]:
        """The items, each a step of the task, of which `total` may be unknown (None)."""
        # nobody to tell: not even a generator in between
        return items if self._observer is None else self._tracked(items, task, total)

    def _tracked(self, items: Iterable[T], task: str, total: int | None) -> Iterator[T]:
        self.progress(task, 0, total)
        done = 0
        for item in items:
            yield item
            del item  # before the next one is made, as there may be memory for one only; so no enumerate, either
            done += 1  # noqa: SIM113 (see above)
            self.progress(task, done, total)

    def note(self, text: str) -> None:
        """A remark on how the work is done."""
        self._emit("note", text=text)

    def warn(self, text: str) -> None:
        """Something that may be wrong and stops nothing."""
        if self._observer is None:
            warnings.warn(text, stacklevel=2)
        self._emit("warning", text=text)

    def _emit(self, kind: str, **fields: Any) -> None:
        if self._observer is not None:
            self._observer(Event(kind, fields))
