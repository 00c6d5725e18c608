"""Decomposing a torch.nn.Module: layers become plain Sequentials of smaller ones, at ranks that a rule chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.accuracy import Accuracy
from forcereg.lowrank.engine import Factored
from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.ranks import Choice, Criterion, Dearer
from forcereg.lowrank.rule import Rule, check_rule, criterion_of
from forcereg.lowrank.timed import Timed, by_times
from forcereg.nn.moments import input_moments
from forcereg.nn.prepare import Asked, Prepared, Site, learned, prepare
from forcereg.nn.select import Layers
from forcereg.nn.timing import LayerTimer, before_and_after
from forcereg.nn.trace import Trace, same_calls, trace
from forcereg.report.latency import Latency
from forcereg.report.lowrank import net_report, remarks
from forcereg.study.bench import Bench, bench_if
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath

LEAVE = "let layers= leave out"
"""How a layer is left whole, before its name."""
BATCHES = 10
"""Of the data that is looked at if nobody says how many."""


@dataclass(frozen=True)
class Decomposition:
    """A decomposed model: `model`, a new one, and what was done.

    `report`: plain data. layers: per layer its ranks, relative squared error, MACs on the example and learned values
    before and after; totals; net: the same of the whole model; skipped: layers left whole and why; folded: layer -> its
    BatchNorm; remarks; latency, if it was measured.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 16, 3)
    >>> made = forcereg.nn.decompose(conv, torch.randn(1, 3, 8, 8), rule=forcereg.Ranks([4]))
    >>> made, [part.weight.shape[0] for part in made.model]
    (Decomposition(Conv2d 16 -> 4), [4, 16])
    """

    model: nn.Module
    report: dict[str, Any]
    done: Factored
    latency: Latency | None = None

    def __repr__(self) -> str:
        ranks = (f"{one.name} {rank_text(one.full_rank)} -> {rank_text(one.rank)}" for one in self.done.layers)
        return f"Decomposition({', '.join(ranks)})"


@checked
def decompose(
    model: nn.Module,
    example: Any,
    *,
    rule: Rule,
    method: str = "pca",
    layers: Layers | None = None,
    fc: bool = False,
    fold_bn: bool = False,
    multiple: int = 1,
    even_if_dearer: bool = False,
    data: Iterable[Any] | None = None,
    data_aware: int | None = None,
    seed: int = 0,
    latency: str | torch.device | None = None,
    runtime: str = "torch",
    threads: int | None = None,
    observer: Observer | None = None,
) -> Decomposition:
    """Replace layers of a copy of any model by chains of smaller ones, at ranks that a rule chooses.

    example: what the model is run on, in its test phase, to see where layers work: one argument, a tuple of several, or
    a mapping of keywords. Costs are those of that run; a batch of one gives those of one item. rule:
    `forcereg.MaxError(0.05)`, `MaxMacs(0.5)`, `MaxParams(0.5)`, `MaxAccuracyDrop(0.01, score=function_of_a_model)`,
    `Ranks([10, 3])` in the model's order, `RankConfig({"conv1": 8})`, ... method: pca, svd, kmeans, vh, tucker2, cp.
    layers: names or patterns (layer1.*), classes, or a function of a name and a module; None: all convolutions,
    transposed ones too, with `fc` the Linear layers as well. fold_bn: first each BatchNorm goes into the layer that it
    alone reads, and becomes an Identity. multiple: of which ranks of each group are multiples. even_if_dearer: also
    where a chain costs no less than its layer.

    data: batches for what needs them, tensors or lists that open with the model's arguments: the chooser of
    `MaxMacs(0.5, choose="responses")`, and `data_aware`, the number of batches on which pca and svd minimise the error
    of the layers' responses. latency: "cpu" or "cuda", where layers are measured and the fastest rank near the rule's
    is taken, by `runtime` with so many `threads`: torch, or onnxruntime or openvino, which are given each layer and
    chain, and no whole model, as an ONNX model in float32. observer: gets progress and notes.

    A layer becomes a torch.nn.Sequential of plain layers, of its dtype (computed in float64), device and settings; an
    earlier chain is composed and cut again. A module used in several places is replaced in all. Left whole, with the
    reason in the report, are layers that share a weight, have hooks, a computed weight (weight_norm) or a forward of
    their own, whose weight other code reads, or that didn't run. Raises UsageError for what doesn't go together,
    ForceregError for ranks out of range, for a model that doesn't run, and if no layer is decomposed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3))
    >>> made = forcereg.nn.decompose(model, torch.randn(1, 3, 8, 8), rule=forcereg.MaxMacs(0.5))
    >>> [name for name, _ in made.model.named_parameters()][-3:]
    ['2.lowrank.weight', '2.linear.weight', '2.linear.bias']
    >>> made.report["net"]["macs_after"] <= 0.5 * made.report["net"]["macs_before"]
    True
    """
    tell = Tell(observer)
    check_rule(rule)
    # what it would want of a solver is asked of `score` here, see Judged
    rule.check(method, True)
    bench = bench_if(latency, runtime, threads)
    batches = None if data is None else Batches(data, data_aware or BATCHES, example)
    if data_aware is not None and batches is None:
        raise UsageError("data_aware needs data: batches, as a DataLoader gives them")
    aware = None if data_aware is None or batches is None else batches.moments
    ready = prepare(model, example, Asked(method, layers, fc, multiple, seed, fold_bn, rule.layers, aware))
    if not ready.candidates:
        raise nothing(ready.skipped)
    criterion = criterion_of(rule, Judged(ready, batches, tell), even_if_dearer)
    watched, choices, timed = choose(ready, rule, criterion, bench, tell)
    made, done, chains = watched.apply(choices)
    if not done.layers:
        dearer = any(isinstance(choice, Dearer) for choice in choices.values())
        raise nothing(done.skipped, "even_if_dearer=True decomposes layers whose chain costs no less" if dearer else "")
    after = verified(ready, made, chains, example)
    measured = None
    if bench is not None and timed is not None:
        whole = before_and_after(ready.model, made, example, bench)
        measured = bench.found(None, timed.trials, whole)
    net = net_report(ready.before, Cost(after.macs, learned(made)))
    report = {**done.report(), "net": net, "folded": dict(ready.folded), "remarks": remarks(done, net, LEAVE)}
    report |= {} if measured is None else {"latency": measured.report()}
    return Decomposition(made, report, done, measured)


def choose(
    ready: Prepared, rule: Rule, criterion: Criterion, bench: Bench | None, tell: Tell
) -> tuple[Prepared, Mapping[str, Choice], Timed | None]:
    """A choice for every layer; the same model, of which each layer's work is told; and what was measured."""
    if bench is not None:
        timer = LayerTimer(ready.sites, ready.trace.seen, bench, tell.note)
        timed = by_times(ready.candidates, criterion, timer, rule.budget)
        return ready, timed.choices, timed
    if rule.scores:
        return ready, criterion(ready.candidates), None
    watched = ready.watched(tell.steps("step", 2 * len(ready.candidates)))
    return watched, criterion(watched.candidates), None


def verified(ready: Prepared, made: nn.Module, chains: Mapping[str, nn.Module], example: Any) -> Trace:
    """The new model's run on the example. Raises ForceregError where the model doesn't go through its chains."""
    try:
        after = trace(made, example, chains)
    except ForceregError as error:
        raise ForceregError(f"decomposed, {error}; leave out by layers= whose attributes the model reads") from error
    if lost := same_calls(ready.trace, after, list(chains)):
        raise ForceregError(f"layer '{lost[0]}': the model calls it by another way than its submodules; leave it out")
    return after


def nothing(skipped: Mapping[str, str], hint: str = "") -> ForceregError:
    """The error for a model of which no layer is decomposed."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no convolution (fc=True?)"
    return ForceregError(f"nothing to decompose ({reasons}){hint and f'; {hint}'}")


@dataclass(frozen=True)
class Batches:
    """Data, how much of it is looked at, and what a model takes of a batch."""

    data: Iterable[Any]
    count: int
    example: Any

    def moments(self, model: nn.Module, sites: Mapping[str, Site]) -> Mapping[str, Tensor]:
        """Second moments of the inputs of sites, by name."""
        return input_moments(model, sites, self.data, self.count, self.example)


@dataclass(frozen=True)
class Judged:
    """A `lowrank.rule.Subject`: a model as the rules for ranks see it."""

    ready: Prepared
    batches: Batches | None
    tell: Tell

    @property
    def whole(self) -> Cost:
        """See Subject."""
        return self.ready.whole

    @cached_property
    def _moments(self) -> Mapping[str, Tensor]:
        if self.batches is None:
            raise UsageError("the rule looks at the layers' inputs: give data, batches as a DataLoader gives them")
        sites = {one.name: self.ready.sites[one.name] for one in self.ready.candidates}
        found = dict(self.batches.moments(self.ready.model, sites))
        if left := [name for name in sites if name not in found]:
            raise UsageError(
                f"'{left[0]}' is transposed, and responses are known of others only; leave it out by layers="
            )
        return found

    def moments(self) -> Mapping[str, Tensor]:
        """See Subject."""
        return self._moments

    def scored_on(self, solver: StrPath | None) -> Accuracy:
        """See Subject: there is no solver."""
        raise UsageError("a model is scored by a function of it: MaxAccuracyDrop(0.01, score=accuracy)")

    def scored_by(self, score: Callable[[nn.Module], float]) -> Accuracy:
        """See Subject: the model in its test phase."""

        def accuracy(choices: Mapping[str, Choice]) -> float:
            found = score(self.ready.apply(choices)[0].eval())
            try:
                return float(found)
            except (TypeError, ValueError):
                raise UsageError(f"score gave {found!r}; expected the model's accuracy, from 0 to 1") from None

        return accuracy
