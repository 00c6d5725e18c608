"""The largest batch with which a GPU trains a net: iterations on trial, doubling the batch, then halving the gap.

Written for CUDA; it has run with a simulated limit only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from forcereg.errors import ForceregError
from forcereg.schema import SolverParameter
from forcereg.schema.rules import included
from forcereg.schema.text import NetFile, SolverFile
from forcereg.solver.base import SolverBase
from forcereg.solver.run import Teller
from forcereg.solver.setup import TRAIN_FIELDS, solver_root, trained_net
from forcereg.system.capture import WARM_UP
from forcereg.system.events import Event, Observer
from forcereg.system.memory import WORDS, is_shortage

CLOSE = 32
"""The batch found is the largest but for this part of it."""
MOST = 1 << 16
"""No larger batch is tried, nor one of more records than there are."""
TRIAL = WARM_UP + 2
"""Iterations of a trial: until they run as a graph, and once more."""
PARAMS = {"Data": "data_param", "ImageData": "image_data_param", "HDF5Data": "hdf5_data_param",
          "WindowData": "window_data_param"}  # fmt: skip
"""Type of a data layer -> its message, with a batch_size."""
Build = Callable[[SolverFile, Sequence[Observer]], Any]
"""Makes the solver that is tried, of a file and its observers."""


def largest(fits: Callable[[int], bool], start: int, most: int) -> tuple[int, int | None]:
    """The largest number up to `most` that fits, to 1 / CLOSE of it, 0 for none; and the least tried that doesn't.

    What is smaller than a number that fits must fit too. The first one tried is `start`.
    """
    low, high, size = 0, None, min(start, most)
    while high is None and low < most:
        if fits(size):
            low, size = size, min(2 * size, most)
        else:
            high = size
    while high is not None and high - low > max(1, low // CLOSE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


@dataclass(frozen=True)
class Batched:
    """A solver and the data layers of its training net, by their places in the net's file.

    Raises ForceregError if there are none of `PARAMS`, or of several batches.
    """

    file: SolverFile
    net: NetFile
    places: tuple[int, ...]

    @classmethod
    def of(cls, file: SolverFile, level: int | None, stages: Sequence[str]) -> Batched:
        """See the class; `level` and `stages` of the training net's state."""
        file = replace(file, root=solver_root(file))
        assert file.root is not None
        chosen = trained_net(file, file.root, level, stages)
        layers = enumerate(chosen.file.message.layer)
        found = cls(
            file, chosen.file, tuple(at for at, one in layers if one.type in PARAMS and included(one, chosen.state))
        )
        if not found.places:
            raise ForceregError(
                f"{chosen.file.name}: no data layer of the training net has a batch_size to be found; expected one of "
                f"type {', '.join(PARAMS)}"
            )
        if len(sizes := {*found.sizes(chosen.file.message)}) > 1:
            raise ForceregError(
                f"{chosen.file.name}: its data layers have several batches, {', '.join(map(str, sorted(sizes)))}; give "
                "them one"
            )
        return found

    def _params(self, net: Any) -> Iterator[Any]:
        for place in self.places:
            yield getattr(net.layer[place], PARAMS[net.layer[place].type])

    def sizes(self, net: Any) -> list[int]:
        """The batches that the data layers have in a NetParameter."""
        return [int(param.batch_size) for param in self._params(net)]

    @property
    def size(self) -> int:
        """The batch that is written."""
        return self.sizes(self.net.message)[0]

    @property
    def where(self) -> str:
        """The first data layer, for a message."""
        return self.net.where(self.places[0])

    def at(self, size: int) -> SolverFile:
        """The solver with this batch in training; its tests stay."""
        own, param, net = self.file.message, SolverParameter(), type(self.net.message)()
        param.CopyFrom(own)
        net.CopyFrom(self.net.message)
        for one in self._params(net):
            one.batch_size = size
        for name in TRAIN_FIELDS:
            param.ClearField(name)
        param.train_net_param.CopyFrom(net)
        # tests of the net that was named once for both
        left = len(own.test_iter) - len(own.test_net) - len(own.test_net_param)
        if own.HasField("net"):
            param.test_net.extend([own.net] * left)
        elif own.HasField("net_param"):
            param.test_net_param.extend([own.net_param] * left)
        return replace(self.file, message=param, inline=None)


def find(batched: Batched, build: Build, device: torch.device, tell: Teller) -> SolverFile:
    """The solver with the largest batch that fits `device`, which is told. Raises ForceregError on a CPU."""
    check_device(device)
    most = min(_records(build(_plain(batched.at(1)), [])), MOST)

    def fits(size: int) -> bool:
        found = _runs(build, _plain(batched.at(size)))
        _free()
        tell.emit("note", text=f"A batch of {size:,} {'fits' if found else 'does not fit'}")
        return found

    _free()
    size, beyond = largest(fits, batched.size, most)
    if not size:
        raise ForceregError(f"{batched.net.name}: not even a batch of 1 fits the GPU's memory; use smaller layers")
    why = f"{beyond:,} does not fit" if beyond else f"more than {most:,} aren't tried"
    tell.emit(
        "note",
        text=f"The largest batch found is {size:,} ({why}); write batch_size: {size} in {batched.where}, which has "
        f"{batched.size}, and see to base_lr, which was chosen for that",
    )
    return batched.at(size)


def check_device(device: torch.device) -> None:
    """Raises ForceregError but for a GPU."""
    if device.type != "cuda":
        raise ForceregError(
            "the largest batch is looked for in a GPU's memory, and this runs on the CPU; choose a batch_size by its "
            "speed there"
        )


def _plain(file: SolverFile) -> SolverFile:
    """The solver that neither shows nor saves, and tests by one batch of each net, at first."""
    p = file.message
    p.display = p.snapshot = 0
    p.snapshot_after_train, p.test_initialization = False, True
    p.test_interval = (1 << 31) - 1 if p.test_interval > 0 else 0
    p.test_iter[:] = [min(1, count) for count in p.test_iter]
    p.ClearField("weights")
    return file


def _records(solver: SolverBase) -> int:
    """Of the smallest set that the training net reads."""
    sizes = [feed.size() for feed in solver.net.feeds.values()]
    return min((size for size in sizes if size), default=MOST)


def _runs(build: Build, file: SolverFile) -> bool:
    """Whether iterations have memory enough, as graphs too."""
    short = list[str]()

    def heard(event: Event) -> None:
        # a graph that can't be recorded for lack of memory is given up with a note
        if event.kind == "note" and WORDS.search(event.text):
            short.append(event.text)

    try:
        build(file, [heard]).step(TRIAL)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what is still being computed may lack memory, too
    except Exception as error:
        if not is_shortage(error):
            raise
        return False
    return not short


def _free() -> None:
    """Gives back what a solver that is gone has left to the allocator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
