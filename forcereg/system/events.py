"""What happens in a run, as records: the solver emits them, logs and plots are views of them.

An observer is a callable that takes an `Event`. Values are plain numbers and strings, read from the
device once per event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One record: `kind` says which of `fields` there are.

    start(net, policy) · test_start(net, iteration) · test(net, iteration, outputs, loss) ·
    train(iteration, loss, outputs, rate, speed, seconds, interval) · step(iteration, current_step) ·
    rate(iteration, rate) · scale(iteration, scale, good, skipped) · debug(iteration, rows, norms) ·
    final(iteration, loss) · force(iteration, layers; if measured ratio, warned) · ranks(iteration, layers) ·
    snapshot(model, state, iteration, binary) · restore(state, iteration) · weights(file, report) ·
    progress(iteration, max_iter) · note(text) · warning(text) · stopped() · done() · error(text)
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


Observer = Callable[[Event], None]
