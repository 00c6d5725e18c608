"""A net as the rules for ranks see it: what it costs, and how it scores at a choice of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from forcereg.cost import Cost
from forcereg.errors import UsageError
from forcereg.lowrank.accuracy import Accuracy
from forcereg.lowrank.decompose import prepare
from forcereg.lowrank.ranks import Choice
from forcereg.net.module import Net
from forcereg.schema.text import net_from_message
from forcereg.study.latency import filled_net
from forcereg.study.moments import BATCHES, moments_of
from forcereg.study.opened import Opened, Opening
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath


@dataclass(frozen=True)
class Judged:
    """A `lowrank.rule.Subject`: an opened net, and what it was opened with. `scores`: the file that keeps scores."""

    opened: Opened
    asked: Opening
    scores: Path | None = None

    @property
    def whole(self) -> Cost:
        """Of the whole net as it is."""
        return self.opened.whole

    @cached_property
    def _moments(self) -> Mapping[str, Tensor]:
        data = self.asked.training_data(self.asked.data_aware or BATCHES)
        read, selection = self.opened.read, replace(self.asked.selection(), state=self.opened.accounts.state)
        # of the net that reads data, which a deploy net doesn't
        reading = prepare(data.source(read.file), self.opened.weights, None, selection)
        return moments_of(reading, [one.name for one in self.opened.prepared.candidates], data)

    def moments(self) -> Mapping[str, Tensor]:
        """See Subject: over as many batches as a data-aware decomposition has, or BATCHES."""
        return self._moments

    @property
    def tell(self) -> Tell:
        """What hears how a search goes."""
        return self.asked.tell

    def scored_on(self, solver: StrPath | None) -> Accuracy:
        """See Subject."""
        evaluator = self.asked.evaluator(self.scores, solver)
        return evaluator.accuracy(self.opened.prepared, self.opened.weights)

    def scored_by(self, score: Callable[[Net], float]) -> Accuracy:
        """See Subject: the net in its test phase, fed by hand."""
        prepared, accounts = self.opened.prepared, self.opened.accounts

        def accuracy(choices: Mapping[str, Choice]) -> float:
            made = prepared.apply(choices)
            file = net_from_message(made.net, prepared.file.name)
            # shapes are given, so that its data layers open nothing: the function feeds it
            net = filled_net(file, made.weights, accounts.fed or {}, accounts.allow_python_layers)
            found = score(net.eval())
            try:
                return float(found)
            except (TypeError, ValueError):
                raise UsageError(f"score gave {found!r}; expected the net's accuracy, a number from 0 to 1") from None

        return accuracy
