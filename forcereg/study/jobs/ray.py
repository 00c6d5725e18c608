"""Ray's tasks, on the cluster that RAY_ADDRESS names, else on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from forcereg.errors import ForceregError
from forcereg.registry import executor
from forcereg.study.jobs.job import Job, run


def ray() -> Any:
    """The module. Raises ForceregError without it."""
    try:
        import ray
    except ImportError:
        raise ForceregError('--executor ray needs ray; install it with pip install "forcereg[ray]"') from None
    return ray


@executor("ray")
class Ray:
    """`count` tasks; resources are those of ray.remote (num_cpus, num_gpus, memory), others the cluster's own."""

    takes = "num_cpus, num_gpus, memory or a cluster's own"

    def __init__(self, job: Job, count: int, resources: Mapping[str, Any]) -> None:
        self._ray = module = ray()
        own = {name: float(value) for name, value in resources.items() if name in ("num_cpus", "num_gpus")}
        rest = {name: value for name, value in resources.items() if name not in own}
        if "memory" in rest:
            own["memory"] = rest.pop("memory")
        try:
            if not module.is_initialized():
                module.init(log_to_driver=False, logging_level="ERROR")
            # dead ones aren't begun again: the others take up their runs
            task = module.remote(run).options(max_retries=0, resources=rest or None, **own)
            self._tasks = [task.remote(job, number) for number in range(count)]
        except Exception as error:
            why = " ".join(str(error).split())
            raise ForceregError(f"--executor ray: tasks can't be started: {why}") from error

    def ended(self) -> dict[int, str]:
        """Number of each that has ended -> how, "" for well or as it has told itself."""
        done, _ = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        return {number: self._how(task) for number, task in enumerate(self._tasks) if task in done}

    def _how(self, task: Any) -> str:
        try:
            self._ray.get(task)
        except (self._ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return ""
        except Exception as error:
            return f"ended: {(str(error).splitlines() or [type(error).__name__])[0]}"
        return ""

    def stop(self) -> None:
        """Interrupts those that still run."""
        for task in self._tasks:
            with contextlib.suppress(Exception):
                self._ray.cancel(task)

    def kill(self) -> None:
        """Ends those that still run."""
        for task in self._tasks:
            with contextlib.suppress(Exception):
                self._ray.cancel(task, force=True)
