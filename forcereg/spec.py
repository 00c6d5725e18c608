"""From a parsed net to what will be built: phase rules, loss weights, splits, outputs.

Pure functions on plain data (semantics: Caffe's net construction). Nothing here builds or runs
a layer, reads data or imports torch.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, did_you_mean
from forcereg.schema import TEST, TRAIN, LayerParameter, NetState
from forcereg.schema.scan import shown
from forcereg.schema.text import NetFile

MAX_AXES = 32
MAX_COUNT = 2**31 - 1
"""Caffe's limits of a blob: its number of axes, and of values."""

PHASES = {"TRAIN": TRAIN, "TEST": TEST}


@dataclass(frozen=True)
class LayerSpec:
    """One layer that the net will hold. `where` (file, line, name) opens every error about it.

    `loss_weights` has one entry per top; `message` is read-only. Relative paths in it are taken from `root`;
    `folder` is the net file's, the working directory for text.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Any
    where: str
    phase: int
    loss_weights: tuple[float, ...] = ()
    root: Path = Path()
    folder: Path = Path()

    def fail(self, text: str) -> ForceregError:
        """The error to raise about this layer: its file, line and name, then `text`."""
        return ForceregError(f"{self.where}: {text}")

    def warn(self, text: str) -> None:
        """Warns the user about this layer: its file, line and name, then `text`."""
        warnings.warn(f"{self.where}: {text}", stacklevel=3)

    def check_size(self, what: str, shape: Sequence[int]) -> None:
        """Raises ForceregError if a blob of `shape` exceeds Caffe's limits; to be called before it is allocated."""
        if len(shape) > MAX_AXES:
            raise self.fail(f"{what} would have {len(shape)} axes; a blob has at most {MAX_AXES}")
        total = prod(shape)
        if min(shape, default=0) < 0 or total > MAX_COUNT:
            raise self.fail(
                f"{what} would have shape {list(shape)}, {total:,} values; a blob holds 0 to {MAX_COUNT:,}, "
                "use smaller sizes"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "message": self.message.SerializeToString()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        message = LayerParameter.FromString(state["message"])
        for key, value in {**state, "message": message}.items():
            object.__setattr__(self, key, value)


@dataclass(frozen=True)
class NetSpec:
    """The layers one phase keeps, Split layers included, and where they came from.

    `text` is the file's full text (all phases); relative paths in the net are taken from `root`.
    `outputs` are the blobs that no layer consumes, sorted by name as Caffe lists them.
    `force_backward`: the gradient reaches every bottom but labels, and frozen blobs too, whatever the layers say.
    `warnings` are deviations from what Caffe would do, one line each.
    """

    name: str
    layers: tuple[LayerSpec, ...]
    outputs: tuple[str, ...]
    phase: int
    text: str
    filename: str
    root: Path
    force_backward: bool = False
    debug_info: bool = False
    warnings: tuple[str, ...] = ()


def phase_number(phase: str | int) -> int:
    """TRAIN or TEST, by name or number, as the schema's number; raises ForceregError otherwise."""
    if phase in (TRAIN, TEST):
        return int(phase)
    try:
        return PHASES[str(phase).upper()]
    except KeyError:
        raise ForceregError(f"unknown phase {phase!r}; expected TRAIN or TEST") from None


def net_state(phase: int, own: Any = None, *later: Any) -> Any:
    """The NetState that layer rules are matched against: phase, then the net's own, then the solver's.

    Later scalars override earlier ones; stages append. Empty stages are dropped (Caffe's command
    line adds one, which then fails every `stage` rule).
    """
    state = NetState(phase=phase)
    for other in (own, *later):
        if other is not None:
            state.MergeFrom(other)
    kept = [stage for stage in state.stage if stage]
    del state.stage[:]
    state.stage.extend(kept)
    return state


def rule_matches(rule: Any, state: Any) -> bool:
    """Whether a NetStateRule matches; an empty rule does."""
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def included(message: Any, state: Any) -> bool:
    """Whether a layer's include rules keep it, or its exclude rules if it has no others."""
    if message.include:
        return any(rule_matches(rule, state) for rule in message.include)
    return not any(rule_matches(rule, state) for rule in message.exclude)


def build_spec(file: NetFile, state: Any, root: Path | None = None) -> NetSpec:
    """The layers of `file` that `state` keeps, checked and with splits. Raises ForceregError."""
    root = root if root is not None else Path.cwd()
    layers = kept_layers(file, state, root, _raise)
    for problem in blob_problems(layers):
        raise problem
    sources = _sources(layers)
    warnings = _consumed_losses(layers, sources)
    layers = insert_splits(layers)
    return NetSpec(
        name=file.message.name,
        layers=tuple(layers),
        outputs=_outputs(layers),
        phase=state.phase,
        text=file.text,
        filename=file.name,
        root=root,
        force_backward=file.message.force_backward,
        debug_info=file.message.debug_info,
        warnings=tuple(warnings),
    )


def _raise(error: ForceregError) -> None:
    raise error


def kept_layers(file: NetFile, state: Any, root: Path, report: Callable[[ForceregError], None]) -> list[LayerSpec]:
    """The layers of `file` that `state` keeps, without Splits; `report` gets what is wrong with single ones."""
    layers: list[LayerSpec] = []
    hidden = Counter[str]()
    folder = Path.cwd() if file.name.startswith("<") else Path(os.path.abspath(file.name)).parent
    for index, message in enumerate(file.message.layer):
        where = file.where(index)
        if message.include and message.exclude:
            report(ForceregError(f"{where}: has include and exclude rules; use one kind"))
        if not included(message, state):
            continue
        spec = _layer_spec(message, where, state.phase, root, folder)
        for problem in _count_problems(spec):
            report(problem)
        if not message.top and spec.tops:
            (name,) = spec.tops
            hidden[name] += 1
            spec = replace(spec, tops=(f"{name}{hidden[name]}",)) if hidden[name] > 1 else spec
        layers.append(spec)
    if not layers:
        phase = "TRAIN" if state.phase == TRAIN else "TEST"
        report(ForceregError(f"{file.name}: no layer is left in phase {phase}; check the include/exclude rules"))
    return layers


def is_loss(type_name: str) -> bool:
    """Loss layers, by Caffe's naming rule: they carry weight 1 and may omit their top."""
    return type_name.endswith("Loss")


def _layer_spec(message: Any, where: str, phase: int, root: Path, folder: Path) -> LayerSpec:
    tops = tuple(message.top)
    if is_loss(message.type) and not tops:
        tops = (f"({message.name})",)
    weights = tuple(message.loss_weight)
    if not weights:
        first = 1.0 if is_loss(message.type) else 0.0
        weights = tuple(first if i == 0 else 0.0 for i in range(len(tops)))
    bottoms = tuple(message.bottom)
    own_phase = message.phase if message.HasField("phase") else phase
    return LayerSpec(message.name, message.type, bottoms, tops, message, where, own_phase, weights, root, folder)


def _count_problems(spec: LayerSpec) -> Iterator[ForceregError]:
    """What is wrong with the number of a layer's entries."""
    if len(spec.loss_weights) != len(spec.tops):
        yield spec.fail(f"has {len(spec.loss_weights)} loss_weight entries for {len(spec.tops)} tops; give one per top")
    flags = len(spec.message.propagate_down)
    if flags and flags != len(spec.bottoms):
        yield spec.fail(
            f"has {flags} propagate_down entries for {len(spec.bottoms)} bottoms; give none or one per bottom"
        )


def blob_problems(layers: Sequence[LayerSpec]) -> Iterator[ForceregError]:
    """What is wrong with the blobs' names: bottoms that nobody has written, tops written twice."""
    writer: dict[str, LayerSpec] = {}
    last = {top: index for index, spec in enumerate(layers) for top in spec.tops}
    for index, spec in enumerate(layers):
        for bottom in spec.bottoms:
            if bottom not in writer:
                hint = (
                    "; it is written only further down, move its layer up"
                    if last.get(bottom, -1) >= index
                    else did_you_mean(bottom, writer) or f"; known here are {_some(writer)}"
                )
                yield spec.fail(f"unknown bottom blob '{shown(bottom, 80)}'{hint}")
        for slot, top in enumerate(spec.tops):
            in_place = slot < len(spec.bottoms) and spec.bottoms[slot] == top
            if not in_place and top in writer:
                yield spec.fail(
                    f"top blob '{shown(top, 80)}' is already written by layer '{shown(writer[top].name, 80)}'; "
                    "rename one of them (only an in-place layer may reuse its own bottom)"
                )
            writer[top] = spec


def _some(names: Iterable[str], most: int = 12) -> str:
    """The last of `names`, and of how many."""
    known = list(names)
    listed = ", ".join(shown(name) for name in known[-most:]) or "none"
    return listed if len(known) <= most else f"{listed} (the last of {len(known)})"


def _sources(layers: Sequence[LayerSpec]) -> list[tuple[tuple[int, int], ...]]:
    """For each layer the (layer, top) index that writes each of its bottoms."""
    writer: dict[str, tuple[int, int]] = {}
    sources = []
    for index, spec in enumerate(layers):
        sources.append(tuple(writer[bottom] for bottom in spec.bottoms))
        writer.update({top: (index, slot) for slot, top in enumerate(spec.tops)})
    return sources


def _consumed_losses(layers: Sequence[LayerSpec], sources: Sequence[tuple[tuple[int, int], ...]]) -> Iterable[str]:
    read = {source for of_layer in sources for source in of_layer}
    for index, spec in enumerate(layers):
        for slot, weight in enumerate(spec.loss_weights):
            if weight and is_loss(spec.type) and (index, slot) in read:
                yield (
                    f"{spec.where}: loss blob '{shown(spec.tops[slot], 80)}' is read by another layer too; "
                    "counted once, with its gradient (Caffe drops the gradient or counts it twice)"
                )


def insert_splits(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """The layers with a Split behind every top that is used more than once, named as Caffe names them.

    An explicit loss weight counts as a use and moves to the split's first top.
    """
    sources = _sources(layers)
    uses = Counter(source for of_layer in sources for source in of_layer)
    explicit = {
        (index, slot)
        for index, spec in enumerate(layers)
        for slot, weight in enumerate(spec.message.loss_weight)
        if weight
    }
    for source in explicit:
        uses[source] += 1
    taken = Counter({source: 1 for source in explicit})
    result: list[LayerSpec] = []
    for index, spec in enumerate(layers):
        bottoms = []
        for slot, (bottom, source) in enumerate(zip(spec.bottoms, sources[index], strict=True)):
            if uses[source] > 1:
                if bottom in spec.tops[slot : slot + 1]:
                    raise spec.fail(
                        f"changes blob '{shown(bottom, 80)}' in place, but that is also read elsewhere or weighted "
                        "as a loss; give the top a name of its own"
                    )
                bottom = f"{_split_name(layers, source)}_{taken[source]}"
                taken[source] += 1
            bottoms.append(bottom)
        split_here = [slot for slot in range(len(spec.tops)) if uses[(index, slot)] > 1]
        weights = tuple(
            0.0 if slot in split_here and (index, slot) in explicit else weight
            for slot, weight in enumerate(spec.loss_weights)
        )
        result.append(replace(spec, bottoms=tuple(bottoms), loss_weights=weights))
        for slot in split_here:
            source = (index, slot)
            moved = spec.loss_weights[slot] if source in explicit else 0.0
            result.append(_split_layer(spec, slot, _split_name(layers, source), uses[source], moved))
    return result


def _split_name(layers: Sequence[LayerSpec], source: tuple[int, int]) -> str:
    index, slot = source
    return f"{layers[index].tops[slot]}_{layers[index].name}_{slot}_split"


def _split_layer(spec: LayerSpec, slot: int, name: str, count: int, weight: float) -> LayerSpec:
    tops = tuple(f"{name}_{k}" for k in range(count))
    weights = (weight, *[0.0] * (count - 1))
    message = LayerParameter(name=name, type="Split", bottom=[spec.tops[slot]], top=tops)
    return LayerSpec(name, "Split", (spec.tops[slot],), tops, message, spec.where, spec.phase, weights, spec.root)


def _outputs(layers: Sequence[LayerSpec]) -> tuple[str, ...]:
    left: set[str] = set()
    for spec in layers:
        left.difference_update(spec.bottoms)
        left.update(spec.message.top)  # not the top that a loss without one gets
    return tuple(sorted(left))
