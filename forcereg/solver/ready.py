"""What would end a run long after its start, at its first snapshot or test, found before iteration 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from forcereg.data.memory_data import MemoryFeed
from forcereg.errors import ForceregError
from forcereg.layers.output import HDF5Output
from forcereg.net.module import Net
from forcereg.net.scoring import check_blobs, unfed
from forcereg.solver.prefix import probe_prefix
from forcereg.solver.saving import check_room, check_saving, saves
from forcereg.system.files import check_writable

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver


def check_ready(solver: Solver, nets: Mapping[str, Net], given: bool) -> None:
    """Raises ForceregError for what can be known to fail; `given`: a program feeds the nets.

    Rank 0 alone looks at the disk.
    """
    p, name = solver.param, solver.file.name
    if saves(p):
        prefix, slots = solver.prefix(), len(solver.updater.history)
        check_saving(p, nets.values(), slots, name)
        solver.group.once(lambda: probe_prefix(prefix, p, name, solver.iter))
        solver.group.once(lambda: check_room(p, solver.net, slots, prefix, name))
    for key, net in nets.items():
        if net is not solver.net and not _is_tested(solver, int(key.removeprefix("test_"))):
            continue
        check_outputs(net)
        if not given:
            check_blobs(net, solver.device)
            _check_fed(net)


def _is_tested(solver: Solver, index: int) -> bool:
    p = solver.param
    first = solver.iter if solver.iter or p.test_initialization else p.test_interval
    return p.test_interval > 0 and p.test_iter[index] > 0 and first <= p.max_iter


def _check_fed(net: Net) -> None:
    if missing := unfed(net):
        phase = ("training", "test")[net.spec.phase]
        raise ForceregError(
            f"{net.spec.filename}: the {phase} net '{net.spec.name}' needs input blobs {', '.join(missing)}; "
            "give one tensor each or a data layer"
        )
    for feed in net.feeds.values():
        if isinstance(feed, MemoryFeed):
            feed.check_given()


def check_outputs(net: Net) -> None:
    """Raises ForceregError if a file that layers of the net write can't be written."""
    for spec, module in net.built:
        if isinstance(module, HDF5Output):
            try:
                check_writable(module.path)
            except ForceregError as error:
                raise spec.fail(str(error)) from error
