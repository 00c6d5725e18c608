"""What would end a run long after its start, at its first snapshot or test, found before iteration 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.data.memory_data import MemoryFeed
from forcereg.errors import ForceregError
from forcereg.layers.output import HDF5Output
from forcereg.net.module import Net
from forcereg.net.scoring import check_blobs, unfed
from forcereg.solver.prefix import probe_prefix, snapshot_files
from forcereg.solver.run import Nets, Run
from forcereg.solver.saving import check_room, check_saving, saves
from forcereg.system.files import check_writable


def check_ready(run: Run, nets: Nets, slots: int, iteration: int, given: bool, saved: bool = False) -> None:
    """Raises ForceregError for what can be known to fail from `iteration` on; `given`: a program feeds the nets.

    `slots`: values of history a weight; `saved`: snapshots are written whatever the solver says. Rank 0 alone looks at
    the disk.
    """
    p, name = run.param, run.name
    if saved or saves(p):
        prefix = run.prefix()
        check_saving(p, nets, slots, name)
        run.group.once(lambda: probe_prefix(prefix, p, name, iteration))
        if saved:
            run.group.once(lambda: _check_best(prefix, p))
        run.group.once(lambda: check_room(p, nets.train, slots, prefix, name))
    # a test net that never runs needs no inputs and may name files that can't be written
    tested = [net for index, net in enumerate(nets.tests) if _is_tested(p, index, iteration)]
    for net in (nets.train, *tested):
        check_outputs(net)
        if not given:
            check_blobs(net, run.device)
            _check_fed(net)


def _check_best(prefix: Path, p: Any) -> None:
    for path in snapshot_files(prefix, snapshot.BEST, p):
        check_writable(path)


def _is_tested(p: Any, index: int, iteration: int) -> bool:
    first = iteration if iteration or p.test_initialization else p.test_interval
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
