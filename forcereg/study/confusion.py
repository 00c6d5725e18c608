"""Which classes a net takes for which, counted over a whole test set: every record once, whatever the batch size.

The mean over batches of a per-class accuracy, as an Accuracy layer's second top gives it, misleads where a class is
absent from a batch: it counts as 0 there. Here right ones are counted, and a class that the set lacks has no accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers.class_loss import ClassScores
from forcereg.net.module import Net
from forcereg.net.scoring import unfed
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec
from forcereg.system.events import Tell

MOST = 20_000
"""Classes: their counts take 3 GiB."""


@dataclass(frozen=True)
class Confusion:
    """Items of each class by what they were taken for.

    `counts`: int64 (classes, classes + 1), rows are the true classes; the last column is of items whose scores aren't
    all numbers. `ignored`: items whose label doesn't count. `records` of the source, None if all batches counted whole.
    `layer`: whose scores and labels they are.
    """

    counts: np.ndarray
    ignored: int
    batches: int
    records: int | None
    layer: str

    @cached_property
    def items(self) -> np.ndarray:
        """How many there are of each class, int64 (classes,)."""
        return self.counts.sum(1)

    @cached_property
    def right(self) -> np.ndarray:
        """How many of them were taken for what they are."""
        return self.counts.diagonal()

    @property
    def accuracy(self) -> float:
        """The share of all items that were: nan if there are none."""
        total = int(self.items.sum())
        return int(self.right.sum()) / total if total else float("nan")

    @cached_property
    def accuracies(self) -> list[float | None]:
        """That share for each class; None for one that is absent."""
        pairs = zip(self.right.tolist(), self.items.tolist(), strict=True)
        return [right / items if items else None for right, items in pairs]

    def pairs(self, most: int | None = None) -> list[tuple[int, int, int]]:
        """(true class, what it was taken for, how often), the most frequent first, of those that differ."""
        wrong = self.counts[:, :-1].copy()
        np.fill_diagonal(wrong, 0)
        true, taken = np.nonzero(wrong)
        # negative: the most frequent first, and of equal ones the lower classes
        found = zip((-wrong[true, taken]).tolist(), true.tolist(), taken.tolist(), strict=True)
        return [(a, b, -count) for count, a, b in sorted(found)[:most]]


def compared(net: Net, name: str | None = None) -> tuple[LayerSpec, ClassScores]:
    """The layer of `net` that compares scores with labels: `name`, or the one whose accuracy is the net's.

    That is the last Accuracy layer with top_k 1, behind which no auxiliary classifier comes, else the last one, else
    the last loss of class scores. Raises ForceregError if there is none.
    """
    found = [(spec, module) for spec, module in net.built if isinstance(module, ClassScores)]
    if name is not None:
        for spec, module in found:
            if spec.name == name:
                return spec, module
        hint = did_you_mean(name, [spec.name for spec, _ in found])
        raise ForceregError(f"{net.spec.filename}: no layer '{shown(name)}' compares scores with labels{hint}")
    if not found:
        raise ForceregError(
            f"{net.spec.filename}: its TEST net has no layer that compares class scores with labels; add an Accuracy"
        )
    return max(reversed(found), key=lambda one: _rank(one[0]))  # of equal ones the first there


def _rank(spec: LayerSpec) -> tuple[bool, bool]:
    return spec.type == "Accuracy", spec.message.accuracy_param.top_k == 1


def confusion(net: Net, iterations: int | None = None, layer: str | None = None, tell: Tell | None = None) -> Confusion:
    """Runs a net with data of its own over its set, once, or over `iterations` batches; see `compared` for `layer`.

    Of a last batch that goes round the set only the records count that are new. A tie counts as Accuracy has it:
    against the label. `tell` hears of each batch. Raises ForceregError for a net without data, and without `iterations`
    for data without an end.
    """
    if missing := unfed(net):
        raise ForceregError(
            f"{net.spec.filename}: its TEST net reads no data (input {', '.join(missing)}; a net for use?); give the "
            "net that was trained, with its data layers"
        )
    spec, module = compared(net, layer)
    if module.classes > MOST:
        raise spec.fail(f"has {module.classes:,} classes; at most {MOST:,} can be counted")
    records, batch = (None, 1) if iterations is not None else _records(net, spec, module.axis)
    batches = iterations if iterations is not None else -(-(records or 0) // batch)
    last = 1.0 if records is None else (records - (batches - 1) * batch) / batch
    counter, step = _Counter(module), (tell or Tell()).steps("batches", batches)
    # before the layer, since it gives means only
    handle = module.register_forward_pre_hook(lambda _, bottoms: counter.add(*bottoms[:2]))
    try:
        with torch.no_grad():
            for index in range(batches):
                counter.share = last if index == batches - 1 else 1.0
                net.forward_loss()
                step("")
    finally:
        handle.remove()
    counts, ignored = counter.found()
    return Confusion(counts, ignored, batches, records, spec.name)


def _records(net: Net, spec: LayerSpec, axis: int) -> tuple[int, int]:
    """Records of the net's sources, and of a batch of them. Raises ForceregError unless there are equally many."""
    fix = "give --iterations (iterations in Python), then every batch counts whole"
    sizes = {name: feed.size() for name, feed in net.feeds.items()}
    batches = {shape[0] if shape else 0 for feed in net.feeds.values() for shape in feed.shapes[:1]}
    unknown = [name for name, size in sizes.items() if not size]
    if unknown:
        raise ForceregError(f"{net.spec.filename}: data layer '{shown(unknown[0])}' has no number of records; {fix}")
    if len(set(sizes.values())) > 1 or len(batches) > 1:
        told = ", ".join(f"'{shown(name)}' {size:,}" for name, size in sizes.items())
        raise ForceregError(f"{net.spec.filename}: its data layers have different records or batches ({told}); {fix}")
    (batch,), records = batches, int(next(iter(sizes.values())) or 0)
    scores = net.shapes[spec.bottoms[0]]
    # what a part of a batch is can be told by axis 0 only
    if records % batch and (scores[:1] != (batch,) or axis == 0):
        raise spec.fail(f"its scores {list(scores)} haven't the {batch} records of a batch on axis 0; {fix}")
    return records, batch


class _Counter:
    """Adds up on the device. `share`: how much of the next batch counts, from its beginning."""

    def __init__(self, module: ClassScores) -> None:
        self._module = module
        self._counts: Tensor | None = None
        self.share = 1.0

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """The scores and labels of a batch."""
        module, classes = self._module, self._module.classes
        aligned, target = module.aligned(scores.detach(), labels)
        # rows, of which a record may have several (scores at many positions)
        items = round(self.share * len(aligned))
        aligned, target = aligned[:items], target[:items]
        valid = torch.ones_like(target, dtype=torch.bool)
        if module.ignore_label is not None:
            valid = target != module.ignore_label
            # any class does: they are counted apart, but gather needs one
            target = torch.where(valid, target, 0)
        true = aligned.gather(1, target.unsqueeze(1))
        # Accuracy counts a tie against the label, so the best of the others is looked for
        others = aligned.scatter(1, target.unsqueeze(1), -torch.inf)
        most, best = others.max(1)
        taken = torch.where(most < true.squeeze(1), target, best)
        taken = torch.where(aligned.isnan().any(1), classes, taken)
        # one place more than the matrix has, for what is ignored
        place = torch.where(valid, target * (classes + 1) + taken, classes * (classes + 1)).flatten()
        # on the device of the first batch
        if self._counts is None:
            self._counts = torch.zeros(classes * (classes + 1) + 1, dtype=torch.int64, device=place.device)
        self._counts.scatter_add_(0, place, torch.ones_like(place))

    def found(self) -> tuple[np.ndarray, int]:
        """The counts (classes, classes + 1) and how many items are ignored."""
        classes = self._module.classes
        size = classes * (classes + 1)
        counts = np.zeros(size + 1, np.int64) if self._counts is None else self._counts.cpu().numpy()
        return counts[:-1].reshape(classes, classes + 1), int(counts[-1])


def class_names(lines: Iterable[str], classes: int, where: str) -> list[str]:
    """A name for each class, one a line: `n01440764 tench, Tinca tinca` is "tench". Raises ForceregError."""
    names = [_name(line) for line in lines]
    while names and not names[-1]:
        names.pop()
    if len(names) != classes:
        raise ForceregError(f"{where}: has {len(names):,} lines; expected one for each of {classes:,} classes")
    return names


def _name(line: str) -> Any:
    first, _, rest = line.strip().partition(" ")
    # ImageNet's lists have the synset's number in front of its words
    is_synset = len(first) == 9 and first[0] == "n" and first[1:].isdigit()
    return (rest if is_synset and rest.strip() else line).strip().split(",")[0]
