"""What a training is asked to start from, and its solver's file; how its errors are told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from forcereg.system.paths import StrPath, listed

if TYPE_CHECKING:
    from forcereg.schema.text import SolverFile
    from forcereg.solver.distributed import Group
    from forcereg.solver.loop import Solver


class Asked(Protocol):
    """What a training says of where it starts."""

    @property
    def weights(self) -> StrPath | Sequence[StrPath] | None:
        """Models, None for those that the solver names."""

    @property
    def snapshot(self) -> StrPath | None:
        """A solver state to go on from."""

    @property
    def resume(self) -> bool:
        """Whether to go on from the newest snapshot, if there is one."""


@dataclass(frozen=True)
class Start:
    """The models that a run starts from unless it goes on from a snapshot, and whether its solver has `loaded` them.

    `again`: torchrun started its processes once more, so that the newest snapshot counts.
    """

    models: list[str]
    loaded: bool
    again: bool

    @classmethod
    def of(cls, asked: Asked, file: SolverFile, group: Group) -> Start:
        """What is asked for; takes the models out of the solver that aren't to be loaded, or not yet."""
        from forcereg.solver.launch import restarted

        again = any(group.gather(restarted()))  # of several machines not all may know
        own = list(file.message.weights)
        loaded = not (asked.snapshot or asked.resume or again or asked.weights is not None)
        if not loaded:  # or the solver would load them first, and fail where they are gone
            del file.message.weights[:]
        if asked.weights is None:
            # each entry may be a list with commas, as Caffe reads it
            models = ",".join(own).split(",")
        else:
            models = [os.fspath(path) for path in listed(asked.weights)]
        return cls([name.strip() for name in models if name.strip()], loaded, again)


def read(solver: Any) -> SolverFile:
    """A solver's file, text of several lines, or message. A file doesn't load torch: its mistakes are told before."""
    from forcereg.schema.text import read_solver

    if isinstance(solver, os.PathLike) or (isinstance(solver, str) and "\n" not in solver):
        return read_solver(os.fspath(solver))
    from forcereg.solver.setup import solver_file

    return solver_file(solver)


@contextlib.contextmanager
def telling_errors(solver: Solver) -> Iterator[None]:
    """Tells the observers of the error that ends the block; one of the data names the last snapshot."""
    from forcereg.data.feed import DataError

    try:
        try:
            yield
        # within: observers are told the text that names the snapshot
        except DataError as error:
            if solver.last_snapshot is None:
                raise
            raise DataError(f"{error}; the last good snapshot is {solver.last_snapshot}") from error
    except Exception as error:
        # who is told may fail, too, like a callback that has failed before: that isn't what went wrong
        with contextlib.suppress(Exception):
            solver.emit("error", text=str(error))
        raise


@contextlib.contextmanager
def determinism(kept: bool) -> Iterator[None]:
    """Leaves torch's choice of algorithms as it was: it is the process's, whose next run may want another.

    Where it isn't to be `kept`, nothing of torch is loaded.
    """
    if not kept:
        yield
        return
    import torch

    before, mild = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=mild)
