"""Weights & Biases: a run of a project, online or, with WANDB_MODE=offline, in a folder that `wandb sync` sends."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from forcereg.registry import tracker
from forcereg.solver.trackers.logged import CODES, Logged


@tracker("wandb")
class WeightsAndBiases(Logged):
    """`project`: WANDB_PROJECT, else "forcereg", where it is empty. All else is by the environment, as WANDB_MODE.

    Raises ForceregError without wandb and if it can't start.
    """

    package = "wandb"

    def start(self, module: ModuleType) -> Any:
        # what is printed stays this log's
        quiet = module.Settings(console="off", silent=True)
        # None: as its own variable says
        run = module.init(project=self.target or os.environ.get("WANDB_PROJECT") or self.project, settings=quiet)
        run.define_metric("*", step_metric="iteration")
        return run

    def close(self) -> None:
        self.run.finish(exit_code=CODES[self.how])
