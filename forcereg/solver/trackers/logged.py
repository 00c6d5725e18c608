"""Trackers with the interface that Weights & Biases began: a run with a config, and `log` of numbers by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from forcereg.errors import ForceregError
from forcereg.solver.trackers.base import Tracker, missing
from forcereg.system.plugins import told

CODES = {"finished": 0, "stopped": 0, "failed": 1}


class Logged(Tracker):
    """The settings are the run's config, curves are over `iteration`. `package` has `init`, of a `project`.

    `extra`: whether one of forcereg's brings it.
    """

    package = ""
    extra = True
    project = "forcereg"

    def __init__(self, project: str = "", said: str = "") -> None:
        super().__init__(project, said or f"--tracker {self.package}")
        try:
            module = importlib.import_module(self.package)
        except ImportError:
            raise missing(self.said, self.package, self.extra) from None
        try:
            self.run = self.start(module)
        except Exception as error:
            raise ForceregError(f"{self.said}: {told(error)}") from error
        self.how = "failed"

    def start(self, module: ModuleType) -> Any:
        """The run, begun."""
        return module.init(project=self.target or self.project)

    def begin(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(dict(settings))

    def write(self, values: Mapping[str, float], iteration: int) -> None:
        # not as the step, which may never fall: a run may go back
        self.run.log({**values, "iteration": iteration})

    def end(self, how: str) -> None:
        self.how = how

    def close(self) -> None:
        self.run.finish()
