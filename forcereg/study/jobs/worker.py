"""One of several processes on this machine: `python -m forcereg.study.jobs.worker`, whose job comes by standard input.

That stays open as long as who has started it lives: without them this one stops, too.
"""

from __future__ import annotations

from forcereg.system.isolation import leave_out_working_directory

leave_out_working_directory()  # before anything is imported that could be found there
# ruff: noqa: E402

import os
import pickle
import signal
import sys
import threading

from forcereg.errors import ForceregError
from forcereg.system.memory import refuse_what_cannot_be_loaded
from forcereg.system.plugins import told
from forcereg.system.terminal import echo, prepare


def main() -> int:
    """Does the job; the exit code."""
    prepare()
    refuse_what_cannot_be_loaded()
    number = int(sys.argv[1])
    try:
        # from the process that has started this one, no file that anybody else could have written
        job = pickle.load(sys.stdin.buffer)
    except Exception as error:
        echo(f"forcereg: a job can't be sent to a process ({told(error)}); define its classes in a module", err=True)
        return 1
    threading.Thread(target=_left_alone, daemon=True).start()
    from forcereg.study.jobs.job import run

    try:
        return run(job, number)
    except ForceregError as error:
        echo(f"forcereg: job {number + 1}: {error}", err=True)
        return error.exit_code


def _left_alone() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
