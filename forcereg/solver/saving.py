"""Writing a snapshot: the pair of model and solver state, in the format that the solver asks for."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.schema.text import to_text
from forcereg.solver.distill import attributes
from forcereg.solver.prefix import snapshot_files, writes_binary
from forcereg.solver.run import Run
from forcereg.solver.saved import AVERAGE
from forcereg.solver.state import pack
from forcereg.solver.steps import Steps
from forcereg.version import __version__

_FLOAT = 4  # bytes of a value in a snapshot


def saves(p: Any) -> bool:
    """Whether a run of this solver writes snapshots unless it is told to."""
    return p.snapshot > 0 or p.snapshot_after_train


def check_saving(p: Any, nets: Iterable[Net], slots: int, name: str) -> None:
    """Raises ForceregError, opened by `name`, if snapshots can't hold the nets, the first being trained.

    For names of layers, or for more than a binary file holds. `slots`: values of history a weight.
    """
    train, *tests = nets
    for layer in (layer for net in (train, *tests) for layer in net.feeds):
        if "\0" in layer:  # a state names its data layers
            raise ForceregError(f"{name}: snapshots can't hold the name of data layer {layer!r}; choose a plain name")
    if not writes_binary(p):
        # diffs are written for borrowers, too, and need their names
        shared = {} if p.snapshot_diff else train.shared
        blobs = {
            layer: [index for index in range(len(blobs)) if f"{layer}/{index}" not in shared]
            for layer, blobs in train.params.items()
        }
        snapshot.check_names(blobs, name)
    check_format(p, train, slots, name)


def check_format(param: Any, net: Net, slots: int, name: str) -> None:
    """Raises ForceregError, opened by `name`, if the net or its history (`slots` a weight) exceeds a binary file."""
    if writes_binary(param):
        blobs = [blob.numel() for layer in net.params.values() for blob in layer]
        history = slots * sum(one.blob.numel() for one in net.learnable)
        snapshot.check_size(name, _FLOAT * (1 + param.snapshot_diff) * sum(blobs), _FLOAT * history)


def sizes_of(p: Any, net: Net, slots: int) -> list[int]:
    """About how many bytes each file of a snapshot takes: the model, its state, and with `ema_decay` the averages."""
    values, averages = _FLOAT * sum(one.blob.numel() for one in net.learnable), p.ema_decay > 0
    return [values * (1 + p.snapshot_diff), values * (slots + averages), *[values] * averages]


def check_room(p: Any, net: Net, slots: int, prefix: Path, name: str) -> None:
    """Raises ForceregError, opened by `name`, if the disk can't take the first snapshot, or no file may be so large."""
    sizes = sizes_of(p, net, slots)
    # with --keep, too, old ones stay until the new pair is written
    free = shutil.disk_usage(prefix.parent).free
    if sum(sizes) > free:
        raise ForceregError(
            f"{name}: a snapshot needs {sum(sizes):,} bytes, {prefix.parent} has {free:,} free; make room or give "
            "another snapshot_prefix"
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and max(sizes) > limit:
        raise ForceregError(
            f"{name}: a snapshot's file needs {max(sizes):,} bytes, the system's limit for one is {limit:,}; raise it "
            "(ulimit -f)"
        )


def write_pair(
    run: Run,
    net: Net,
    steps: Steps,
    iteration: int,
    current_step: int,
    extra: Mapping[str, Any],
    more: Mapping[str, Any],
    which: str | None = None,
) -> Path:
    """Writes model, state and averages of this iteration under the prefix; the model's path. Raises ForceregError.

    `extra` (see state.extra_state) and `more` go into the state's extra. `which`: what the files are named by in
    place of the iteration.
    """
    prefix, p, binary, updater = run.prefix(), run.param, writes_binary(run.param), steps.updater
    mark = iteration if which is None else which
    model, state, *others = snapshot_files(prefix, mark, p)
    averages = {"average": str(others[0])} if others else {}
    run.tell.emit("snapshot", model=str(model), state=str(state), iteration=iteration, binary=binary, **averages)
    message = snapshot.net_message(net.spec) if binary else None
    attrs = {**provenance(net, p, run.seed), **attributes(steps.passes.lesson)}
    if steps.average is not None:
        with steps.average.in_place():
            snapshot.write_model(averages["average"], pack(net, everywhere=binary), None, attrs, message)
        more = {**more, AVERAGE: steps.average.state_dict()}
    blobs = pack(net, everywhere=binary)
    diffs = pack(net, updater.last_update()) if p.snapshot_diff else None
    # the model first: a state without its model is of no use to --resume auto, a model without state still is one
    snapshot.write_model(model, blobs, diffs, attrs, message)
    learned = str(snapshot.model_path(p.snapshot_prefix, mark, binary))
    extra = {**extra, **updater.extra(), snapshot.WEIGHTS: snapshot.fingerprint(blobs), **more}
    snapshot.write_state(state, iteration, current_step, learned, updater.saved_history(), extra, binary)
    return model


def provenance(net: Net, p: Any, seed: int) -> dict[str, str]:
    """What a model says of where it comes from: net, solver (`p`), seed, version, input shapes."""
    inputs = {name: list(net.shapes[name]) for name in net.inputs}
    return {
        snapshot.NET: net.spec.text,
        "forcereg_version": __version__,
        "forcereg_solver": to_text(p),
        "forcereg_seed": str(seed),
        snapshot.INPUT_SHAPES: json.dumps(inputs),
    }
