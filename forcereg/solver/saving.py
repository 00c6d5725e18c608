"""Writing a snapshot: the pair of model and solver state, in the format that the solver asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcereg import snapshot
from forcereg.net import Net
from forcereg.schema import SolverParameter
from forcereg.schema.text import to_text
from forcereg.solver.saved import CLIPPED, HISTORY
from forcereg.solver.state import pack
from forcereg.version import __version__

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver

_FLOAT = 4  # bytes of a value in a snapshot


def writes_binary(param: Any) -> bool:
    """Whether a SolverParameter asks for binary snapshots, Caffe's default, and not for HDF5."""
    return param.snapshot_format == SolverParameter.SnapshotFormat.Value("BINARYPROTO")


def check_format(param: Any, net: Net, slots: int, name: str) -> None:
    """Raises ForceregError, opened by `name`, if the net or its history (`slots` a weight) exceeds a binary file."""
    if writes_binary(param):
        blobs = [blob.numel() for layer in net.params.values() for blob in layer]
        history = slots * sum(one.blob.numel() for one in net.learnable)
        snapshot.check_size(name, _FLOAT * (1 + param.snapshot_diff) * sum(blobs), _FLOAT * history)


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
