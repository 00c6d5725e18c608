"""Writing a snapshot: the pair of model and solver state, in the format that the solver asks for."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.schema.text import to_text
from forcereg.solver.prefix import writes_binary
from forcereg.solver.saved import CLIPPED, HISTORY
from forcereg.solver.state import pack
from forcereg.version import __version__

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver

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


def pair_size(p: Any, net: Net, slots: int) -> tuple[int, int]:
    """About how many bytes a model and its state take."""
    values = sum(one.blob.numel() for one in net.learnable)
    return _FLOAT * values * (1 + p.snapshot_diff), _FLOAT * values * slots


def check_room(p: Any, net: Net, slots: int, prefix: Path, name: str) -> None:
    """Raises ForceregError, opened by `name`, if the disk can't take the first snapshot, or no file may be so large."""
    sizes = pair_size(p, net, slots)
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


def write_pair(solver: Solver, extra: dict[str, Any]) -> Path:
    """Writes model and state of this iteration, deletes old ones; the model's path. Raises ForceregError."""
    prefix, at, binary = solver.prefix(), solver.iter, writes_binary(solver.param)
    model, state = snapshot.model_path(prefix, at, binary), snapshot.state_path(prefix, at, binary)
    solver.emit("snapshot", model=str(model), state=str(state), iteration=at, binary=binary)
    blobs = pack(solver.net, everywhere=binary)
    diffs = pack(solver.net, solver.updater.last_update()) if solver.param.snapshot_diff else None
    net = snapshot.net_message(solver.net.spec) if binary else None
    snapshot.write_model(model, blobs, diffs, provenance(solver), net)
    learned = str(snapshot.model_path(solver.param.snapshot_prefix, at, binary))
    history = solver.updater.saved_history()
    extra = {**extra, HISTORY: solver.updater.holds, snapshot.WEIGHTS: snapshot.fingerprint(blobs)}
    if solver.clipping is not None:
        extra[CLIPPED] = solver.clipping.last
    snapshot.write_state(state, at, solver.current_step, learned, history, extra, binary)
    if solver.keep:
        snapshot.prune(prefix, solver.keep, at, binary)
    return model


def provenance(solver: Solver) -> dict[str, str]:
    """What a model says of where it comes from: net, solver, seed, version, input shapes."""
    inputs = {name: list(solver.net.shapes[name]) for name in solver.net.inputs}
    return {
        snapshot.NET: solver.net.spec.text,
        "forcereg_version": __version__,
        "forcereg_solver": to_text(solver.param),
        "forcereg_seed": str(solver.seed),
        snapshot.INPUT_SHAPES: json.dumps(inputs),
    }
