"""MLflow: a run of an experiment on a tracking server, in a database or in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from forcereg.errors import ForceregError
from forcereg.registry import tracker
from forcereg.solver.trackers.base import Tracker, missing
from forcereg.system.plugins import told

EXPERIMENT = "forcereg"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
BATCH = 100
"""Parameters that MLflow takes at once."""
LONGEST = 500
"""Characters of a parameter that every store takes."""


@tracker("mlflow")
class MLflow(Tracker):
    """`uri`: as MLFLOW_TRACKING_URI, which counts where it is empty, as do MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_ID.

    The settings are parameters, the curves metrics. Raises ForceregError without MLflow and for a store that it
    refuses.
    """

    def __init__(self, uri: str = "", said: str = "--tracker mlflow") -> None:
        super().__init__(uri, said)
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise missing(said, "mlflow") from None
        self._metric, self._param = Metric, Param
        try:
            self._client = MlflowClient(tracking_uri=uri or None)
            self._run = os.environ.get("MLFLOW_RUN_ID") or self._created()
        except Exception as error:
            raise ForceregError(f"{said}: {told(error)}") from error

    def _created(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        return self._client.create_run(experiment).info.run_id

    def begin(self, settings: Mapping[str, Any]) -> None:
        # a run that goes on has some already, which can't be changed
        known = self._client.get_run(self._run).data.params
        fresh = [self._param(name, str(value)[:LONGEST]) for name, value in settings.items() if name not in known]
        for start in range(0, len(fresh), BATCH):
            self._client.log_batch(self._run, params=fresh[start : start + BATCH])

    def write(self, values: Mapping[str, float], iteration: int) -> None:
        now = int(1000 * time.time())
        found = [self._metric(_name(name), float(value), now, iteration) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=found)

    def end(self, how: str) -> None:
        self._client.set_terminated(self._run, STATUS[how])


def _name(name: str) -> str:
    """MLflow takes letters, digits, underscores, dashes, dots, blanks and slashes."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in name)
