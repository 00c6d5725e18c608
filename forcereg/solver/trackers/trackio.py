"""Trackio: a run of a project in a database of one's own, which `trackio show` draws."""

from __future__ import annotations

from forcereg.registry import tracker
from forcereg.solver.trackers.logged import Logged


@tracker("trackio")
class Trackio(Logged):
    """`project`: "forcereg", where it is empty. The folder is TRACKIO_DIR's.

    Raises ForceregError without trackio and if it can't start.
    """

    package = "trackio"
    extra = False  # no versions of it go with the others that are pinned
