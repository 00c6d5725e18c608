"""Going on with the newest snapshot of a run that was ended, however it was."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.snapshot import Damaged, ModelFile, StateFile, read_model, read_state
from forcereg.solver.loop import Solver
from forcereg.solver.snapshots import STORED

_NAME = r"(0|[1-9][0-9]*)\.(caffemodel|solverstate)(?:\.h5)?"


def resume_latest(solver: Solver, masks: str = STORED) -> Path | None:
    """Restores the newest complete pair of model and state, of any format, under the solver's prefix.

    A newer one that is incomplete, damaged or no pair is warned of and passed over. Returns the state's path, None if
    there is nothing to go on with. Of several processes rank 0 chooses. `masks`: see Solver.restore. Raises
    ForceregError if it is of another net.
    """
    # one rank looks and restores, and the others read what it chose: folders may change meanwhile
    path, misfit = solver.group.share(_newest(solver, masks) if solver.group.rank == 0 else None)
    if misfit is not None:  # on all ranks
        raise misfit
    if path is not None and solver.group.rank:
        solver.go_on_from(*_read(path), masks)
    return path


def _newest(solver: Solver, masks: str) -> tuple[Path | None, ForceregError | None]:
    """The state that the solver has gone on from, or what is wrong with the newest one that is whole."""
    prefix = solver.prefix()
    _clean_up(prefix)
    for iteration, states in sorted(_found(prefix).items(), reverse=True):
        for path in states:
            try:
                pair = _read(path)
            except ForceregError as error:
                solver.warn(f"snapshot {iteration} is passed over: {error}")
                continue
            try:
                solver.go_on_from(*pair, masks)
            # damage is passed over; what is whole and another net's is an error, or training would begin anew unasked
            except Damaged as error:
                solver.warn(f"snapshot {iteration} is passed over: {error}")
            except ForceregError as error:
                return path, error
            else:
                return path, None
        if not states:
            solver.warn(f"snapshot {iteration} is passed over: {prefix}_iter_{iteration} has no solver state")
    return None, None


def _read(state: Path) -> tuple[StateFile, ModelFile]:
    """The pair of a state. Not the model that the state names: a file of that name may be another run's."""
    found, model = read_state(state), read_model(_beside(state))
    if not found.goes_with(model):  # a run that wrote over another's was killed between model and state
        raise ForceregError(f"{model.path} is not the model that {state.name} was saved with")
    return found, model


def _beside(state: Path) -> Path:
    start, _, end = state.name.rpartition("solverstate")
    return state.with_name(f"{start}caffemodel{end}")


def _found(prefix: Path) -> dict[int, list[Path]]:
    """Iteration -> its states, the newest first; none if there is only a model."""
    found: dict[int, list[Path]] = {}
    for path, match in _matching(prefix, rf"{re.escape(prefix.name)}_iter_{_NAME}"):
        states = found.setdefault(int(match[1]), [])
        if match[2] == "solverstate":
            states.append(path)
    return {iteration: sorted(states, key=os.path.getmtime, reverse=True) for iteration, states in found.items()}


def _clean_up(prefix: Path) -> None:
    """Deletes what writing a snapshot left behind when it was killed."""
    # such a name may be cut before its end
    for path, _ in _matching(
        prefix, rf"\.{re.escape(prefix.name)}_(iter_[0-9]*|best)(_ema)?[.a-z0-9]*\.[0-9a-f]{{8}}\.tmp"
    ):
        with contextlib.suppress(OSError):
            path.unlink()


def _matching(prefix: Path, pattern: str) -> list[tuple[Path, re.Match[str]]]:
    names = os.listdir(prefix.parent) if os.path.isdir(prefix.parent) else []
    matches = [(prefix.parent / name, re.fullmatch(pattern, name)) for name in sorted(names)]
    return [(path, match) for path, match in matches if match]
