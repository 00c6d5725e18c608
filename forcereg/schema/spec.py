"""From a parsed net to what will be built: phase rules, loss weights, splits, outputs.

Pure functions on plain data (semantics: Caffe's net construction). Nothing here builds or runs
a layer, reads data or imports torch.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan, prod
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, did_you_mean
from forcereg.schema import TEST, TRAIN, LayerParameter
from forcereg.schema.foreign import layer_options
from forcereg.schema.numbers import FLOATS, repeats
from forcereg.schema.rules import (
    ONLY,
    Title,
    hidden_makers,
    included,
    left_out,
    named,
    net_state,
    said_rule,
    said_state,
    way_in,
)
from forcereg.schema.scan import shown
from forcereg.schema.text import NetFile

MAX_AXES = 32
MAX_COUNT = 2**31 - 1
"""Caffe's limits of a blob: its number of axes, and of values."""


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

    @property
    def options(self) -> dict[str, Any]:
        """What the file says of the layer beside names, blobs, rules and weights, its own fields too, as Python values.

        Messages are dicts, fields that Caffe repeats or that stand there several times are lists:
        `{"permute_param": {"order": [0, 2, 3, 1]}}`. Raises ForceregError for a string that isn't UTF-8.
        """
        try:
            return layer_options(self.message)
        except ValueError as error:
            raise self.fail(str(error)) from None

    def fail(self, text: str) -> ForceregError:
        """The error to raise about this layer: its file, line and name, then `text`."""
        return ForceregError(f"{self.where}: {text}")

    def warn(self, text: str) -> None:
        """Warns the user about this layer: its file, line and name, then `text`."""
        warnings.warn(f"{self.where}: {text}", stacklevel=3)

    def check_numbers(self) -> None:
        """Raises ForceregError for a number that isn't finite; to be called when the layer's own checks have passed."""
        for field, value in _not_finite(self.message):
            raise self.fail(f"{field} is {value:g}; expected a finite number")

    def check_size(self, what: str, shape: Sequence[int]) -> None:
        """Raises ForceregError if a blob of `shape` exceeds Caffe's limits; to be called before it is allocated."""
        if len(shape) > MAX_AXES:
            raise self.fail(f"{what} would have {len(shape)} axes; a blob has at most {MAX_AXES}")
        if min(shape, default=0) < 0:
            raise self.fail(f"{what} would have shape {list(shape)}; expected sizes of 0 or more")
        total = prod(shape)
        if total > MAX_COUNT:
            raise self.fail(
                f"{what} would have shape {list(shape)}, {total:,} values; a blob holds 0 to {MAX_COUNT:,}, "
                "use smaller sizes"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "message": self.message.SerializeToString()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        message = LayerParameter.FromString(state["message"])
        for key, value in {**state, "message": message}.items():
            # the dataclass is frozen, also for itself
            object.__setattr__(self, key, value)


@dataclass(frozen=True)
class NetSpec:
    """The layers one phase keeps, Split layers included, and where they came from.

    `text` is the file's full text (all phases); relative paths in the net are taken from `root`.
    `outputs` are the blobs that no layer consumes, sorted by name as Caffe lists them.
    `force_backward`: the gradient reaches every bottom but labels, and frozen blobs too, whatever the layers say.
    `warnings` are deviations from what Caffe would do, one line each.
    `title` names the net in errors; '' where it is the only one.
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
    title: str = ""


def build_spec(file: NetFile, state: Any, root: Path | None = None, title: Title = ONLY) -> NetSpec:
    """The layers of `file` that `state` keeps, checked and with splits. Raises ForceregError."""
    root = root if root is not None else Path.cwd()
    with named(title.short(state)):
        for problem in rule_problems(file, state, title):
            raise problem
        layers = kept_layers(file, state, root)
        # the first one only; check tells all of them
        for problem in problems(layers, file, state, title):
            raise problem
        # before Splits: they rename what the layers read
        sources = _sources(layers)
        warnings = (*file.warnings, *_consumed_losses(layers, sources))
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
        warnings=warnings,
        title=title.short(state),
    )


def costed_state(file: NetFile, root: Path | None = None) -> Any:
    """The state of the net that costs are of, without shapes: TEST, or TRAIN where the layers of TEST make no net."""
    states = [net_state(phase, file.message.state, net_state(phase)) for phase in (TEST, TRAIN)]
    return next((state for state in states if stands(file, state, root)), states[0])


def stands(file: NetFile, state: Any, root: Path | None = None) -> bool:
    """Whether the layers that a state keeps make a net, whatever their shapes."""
    try:
        build_spec(file, state, root)
    except ForceregError:
        return False
    return True


def rule_problems(file: NetFile, state: Any, title: Title = ONLY) -> Iterator[ForceregError]:
    """What is wrong with the layers' rules: of both kinds in one layer, or none lets a layer in."""
    for index, message in enumerate(file.message.layer):
        if message.include and message.exclude:
            yield ForceregError(f"{file.where(index)}: has include and exclude rules; use one kind")
    if not any(included(message, state) for message in file.message.layer):
        hidden = [left_out(message, state) for message in file.message.layer]
        first, phase = hidden[0], "TRAIN" if state.phase == TRAIN else "TEST"
        yield ForceregError(
            f"{file.name}: no layer is left in phase {phase} ({said_state(state)}); "
            f"of layer '{first.name}' {first.why}; check the include/exclude rules: {way_in(hidden, state, title)}"
        )


def kept_layers(file: NetFile, state: Any, root: Path) -> list[LayerSpec]:
    """The layers of `file` that `state` keeps, without Splits."""
    layers: list[LayerSpec] = []
    hidden = Counter[str]()
    folder = Path.cwd() if file.name.startswith("<") else Path(os.path.abspath(file.name)).parent
    for index, message in enumerate(file.message.layer):
        if not included(message, state):
            continue
        spec = _layer_spec(message, file.where(index), state.phase, root, folder)
        if not message.top and spec.tops:
            (name,) = spec.tops
            hidden[name] += 1
            spec = replace(spec, tops=(f"{name}{hidden[name]}",)) if hidden[name] > 1 else spec
        layers.append(spec)
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


def problems(layers: Sequence[LayerSpec], file: NetFile, state: Any, title: Title = ONLY) -> Iterator[ForceregError]:
    """What is wrong with the kept layers' own entries and with the blobs between them, layer by layer."""
    for spec in layers:
        yield from _count_problems(spec)
    yield from _blob_problems(layers, file, state, title)


_BOUNDS = frozenset({"clip_param.min", "clip_param.max", "threshold_param.threshold"})
"""What may be infinite."""


def _not_finite(message: Any, inside: str = "") -> Iterator[tuple[str, float]]:
    """Fields of a layer with such numbers, those of its `blobs` aside, which are weights."""
    for field, value in message.ListFields():
        path = f"{inside}{field.name}"
        values = value if repeats(field) else (value,)
        if field.message_type is not None:
            # weights are looked at where they are loaded: there may be millions
            for part in values if path != "blobs" else ():
                yield from _not_finite(part, f"{path}.")
        elif field.type in FLOATS:
            yield from ((path, one) for one in values if isnan(one) or (not isfinite(one) and path not in _BOUNDS))


def _count_problems(spec: LayerSpec) -> Iterator[ForceregError]:
    """What is wrong with the number of a layer's entries."""
    if len(spec.loss_weights) != len(spec.tops):
        yield spec.fail(f"has {len(spec.loss_weights)} loss_weight entries for {len(spec.tops)} tops; give one per top")
    flags = len(spec.message.propagate_down)
    if flags and flags != len(spec.bottoms):
        yield spec.fail(
            f"has {flags} propagate_down entries for {len(spec.bottoms)} bottoms; give none or one per bottom"
        )


def _blob_problems(layers: Sequence[LayerSpec], file: NetFile, state: Any, title: Title) -> Iterator[ForceregError]:
    """What is wrong with the blobs' names: bottoms that nobody has written, tops written twice."""
    places = [index for index, message in enumerate(file.message.layer) if included(message, state)]
    writer: dict[str, LayerSpec] = {}
    last = {top: index for index, spec in enumerate(layers) for top in spec.tops}
    for index, spec in enumerate(layers):
        for bottom in spec.bottoms:
            if bottom not in writer:
                above = file.message.layer[: places[index]]
                hidden = [left_out(one, state) for one in above if bottom in one.top and not included(one, state)]
                if hidden:
                    hint = hidden_makers(hidden, state, title, shown(spec.name, 80))
                elif last.get(bottom, -1) >= index:
                    hint = "; it is written only further down, move its layer up"
                else:
                    hint = did_you_mean(bottom, writer) or f"; known here are {_some(writer)}"
                yield spec.fail(f"unknown bottom blob '{shown(bottom, 80)}'{hint}")
        for slot, top in enumerate(spec.tops):
            in_place = slot < len(spec.bottoms) and spec.bottoms[slot] == top
            if not in_place and top in writer:
                yield spec.fail(
                    f"top blob '{shown(top, 80)}' is already written by layer '{shown(writer[top].name, 80)}'; "
                    f"{_both_in(spec, writer[top], state, title)} (only an in-place layer may reuse its own bottom)"
                )
            # the last one to write counts, as in Caffe: in place means a newer blob of the same name
            writer[top] = spec


def _both_in(spec: LayerSpec, other: LayerSpec, state: Any, title: Title) -> str:
    """What to do about two layers that write one blob: if they have rules, these should not let in both."""
    ruled = [one for one in (other, spec) if one.message.include or one.message.exclude]
    if not ruled or spec is other:
        return "rename one of them"
    told = []
    for one in (other, spec):
        rules = "; ".join(map(said_rule, (*one.message.include, *one.message.exclude)))
        kind = "include" if one.message.include else "exclude"
        told.append(f"'{shown(one.name, 80)}' ({f'{kind} rule: {rules}' if rules else 'no rule'})")
    return f"both {' and '.join(told)} are in the {title.full(state)}: correct their rules or rename one of them"


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
                    others = _readers(layers, sources, source, index)
                    raise spec.fail(
                        f"changes blob '{shown(bottom, 80)}' in place, but that is also read elsewhere{others} "
                        "or weighted as a loss; give the top a name of its own"
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


def _readers(
    layers: Sequence[LayerSpec], sources: Sequence[tuple[tuple[int, int], ...]], source: tuple[int, int], but: int
) -> str:
    """' (by layer 'a')': who else reads a blob, the first of them."""
    others = [layers[i].name for i, of_layer in enumerate(sources) if source in of_layer and i != but]
    return f" (by layer '{shown(others[0], 80)}')" if others else ""


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
        # first what it reads: an in-place layer's top is left again
        left.difference_update(spec.bottoms)
        left.update(spec.message.top)  # not the top that a loss without one gets
    # Caffe keeps them in a set, ordered by name: `net output #k` counts so
    return tuple(sorted(left))
