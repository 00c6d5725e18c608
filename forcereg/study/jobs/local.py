"""Processes on this machine."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from forcereg.errors import ForceregError
from forcereg.registry import executor
from forcereg.study.jobs.job import INTERRUPTED, Job
from forcereg.system.files import make_folder
from forcereg.system.isolation import python


@executor("local")
class Local:
    """`count` processes here, which divide the cores; they take no resources."""

    takes = ""

    def __init__(self, job: Job, count: int, resources: Mapping[str, Any]) -> None:
        try:
            sent = pickle.dumps(job)
        except Exception as error:  # whatever a class of the user's raises
            raise ForceregError(
                f"a job can't be sent to a process ({error}); define its functions and classes in a module"
            ) from None
        make_folder(job.told(0).parent)  # what can't be is told once, not by each process
        self._processes: list[subprocess.Popen[bytes]] = []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
        try:
            for number in range(count):
                command = [*python(), "-m", "forcereg.study.jobs.worker", str(number)]
                # a session of its own: Ctrl-C in the terminal comes once, from here
                # what code of the user's prints goes to standard error: results have the other one for themselves
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, env=env, start_new_session=True)
                self._processes.append(process)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has ended, as will be seen
                    process.stdin.write(sent)
                    process.stdin.flush()
        except BaseException:
            self.kill()
            raise

    def ended(self) -> dict[int, str]:
        """Number of each process that has ended -> how, "" for well or as it has told itself."""
        codes = [process.poll() for process in self._processes]
        return {number: _how(code) for number, code in enumerate(codes) if code is not None}

    def stop(self) -> None:
        """Tells all to stop, once what trains has saved itself; told again they stop at once."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends those that still run, and waits for them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _how(code: int) -> str:
    if code in (0, 1, 2, INTERRUPTED, -signal.SIGTERM):
        return ""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
