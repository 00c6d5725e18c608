"""Where a run's curves may go: one file and one class each, registered by name; see `base.Tracker`.

Nothing here loads torch or a tracker's own package before a tracker is made.
"""

from __future__ import annotations

# each registers itself
from forcereg.solver.trackers import mlflow, tensorboard, trackio, wandb  # noqa: F401
from forcereg.solver.trackers.base import Tracker, opened

__all__ = ["Tracker", "opened"]
