"""A launcher whose ranks are forked from it, because importing torch takes longer than all they do.

For a nursery: `-m tests.solver.launched train ...` is `forcereg train ...`. Every rank leaves its process id in rank_N.
What $PRELUDE says is run first, in all of them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from forcereg import __main__
from forcereg.solver import launch


class Forked:
    """As subprocess.Popen for `python -m forcereg ARGUMENTS`."""

    def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL),
                                (signal.SIGINT, signal.default_int_handler)):  # fmt: skip
            signal.signal(number, default)
        os.environ.clear()
        os.environ.update(env)
        Path(f"rank_{env['RANK']}").write_text(str(os.getpid()))
        run(command[command.index("forcereg") + 1 :])

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(arguments: list[str]) -> None:
    """Ends the process."""
    try:
        __main__.main(arguments)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))


if __name__ == "__main__":
    launched: Any = launch
    # for the launcher alone: what else starts processes means real ones
    launched.subprocess = SimpleNamespace(**{**vars(launch.subprocess), "Popen": Forked})
    exec(os.environ.get("PRELUDE", ""))
    run(sys.argv[1:])
