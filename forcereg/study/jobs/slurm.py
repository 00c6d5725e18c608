"""Slurm's jobs, by submitit (the extra `slurm`); one that comes to its time limit is put into the queue again."""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

from forcereg.errors import ForceregError
from forcereg.registry import executor
from forcereg.study.jobs.job import Job, run

DAY = 24 * 60
"""Minutes that a job gets where nothing is asked; submitit's own default is 5."""
STATES = ("COMPLETED", "FINISHED", "DONE", "CANCELLED", "FAILED")
"""Of jobs that ended as they were told to, or have told why."""


def submitit() -> Any:
    """The module. Raises ForceregError without it."""
    try:
        import submitit
    except ImportError:
        raise ForceregError('--executor slurm needs submitit; install it with pip install "forcereg[slurm]"') from None
    return submitit


class Again:
    """A job that, when its time is up, comes again, and takes up what is left."""

    def __call__(self, job: Job, number: int) -> int:
        """Its exit code."""
        return run(job, number)

    def checkpoint(self, job: Job, number: int) -> Any:
        """What is put into the queue when the time is up."""
        return submitit().helpers.DelayedSubmission(self, job, number)


@executor("slurm")
class Slurm:
    """`count` jobs of sbatch; resources are its options."""

    takes = "sbatch's options, as partition=gpu"
    cluster: ClassVar[str] = "slurm"

    def __init__(self, job: Job, count: int, resources: Mapping[str, Any]) -> None:
        module = submitit()
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ForceregError("--executor slurm: there is no sbatch here; run it where jobs are submitted")
        self._job, self._cancelled = job, False
        self._folder = job.told(0).parent / f"{job.call}-slurm"
        try:
            by = module.AutoExecutor(folder=self._folder, cluster=self.cluster)
            by.update_parameters(name="forcereg", **self._parameters({"time": DAY, **resources}))
            with by.batch():
                self._jobs = [by.submit(Again(), job, number) for number in range(count)]
        except ForceregError:
            raise
        except Exception as error:  # of sbatch, or of what it was asked for
            why = " ".join(str(error).split())
            raise ForceregError(f"--executor slurm: jobs can't be submitted: {why}") from error

    def _parameters(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """As submitit takes them: those that it knows by name, all others as they are."""
        from submitit.slurm.slurm import _make_sbatch_string

        known = inspect.signature(_make_sbatch_string).parameters
        own = {f"slurm_{name}": value for name, value in resources.items() if name in known}
        rest = {name.replace("_", "-"): value for name, value in resources.items() if name not in known}
        return {**own, **({"slurm_additional_parameters": rest} if rest else {})}

    def ended(self) -> dict[int, str]:
        """Number of each that has ended -> how, "" for well or as it has told itself."""
        return {number: self._how(one) for number, one in enumerate(self._jobs) if self._is_done(number)}

    def _is_done(self, number: int) -> bool:
        # where Slurm keeps no accounts nobody says that one was cancelled before it began
        return self._jobs[number].done() or (self._cancelled and not self._job.told(number).exists())

    def _how(self, one: Any) -> str:
        if one.paths.result_pickle.exists() or one.state.split()[0].upper() in STATES:
            return ""
        return f"(Slurm's {one.job_id}) ended as {one.state}; its log is {one.paths.stderr}"

    def stop(self) -> None:
        """Cancels those that still run, which have Slurm's KillWait to save themselves."""
        self._cancelled = True
        for one in self._jobs:
            if not one.done():
                with contextlib.suppress(Exception):  # it may have ended by now
                    one.cancel()

    def kill(self) -> None:
        """Deletes what was written for them, unless one's log is still wanted."""
        well = all(one.done() and not self._how(one) for one in self._jobs)
        if well:
            shutil.rmtree(self._folder, ignore_errors=True)
