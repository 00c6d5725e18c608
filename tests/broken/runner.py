"""Runs broken inputs in one process of limited memory: a line of input is an id, a line of output its result in JSON.

A case gets a fresh folder; each of its commands runs `forcereg.__main__.main` with its output captured.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import tempfile
from typing import Any

import torch

import forcereg.net.module  # loads all that a command may need, so that the limit leaves the room to the cases
import forcereg.solver.loop  # noqa: F401
from forcereg.__main__ import main
from tests.broken.case import COMMANDS, Case
from tests.broken.cases import CASES

ROOM = 1536 << 20
"""Bytes of address space that a case may take beyond what the process has."""
HANG = 120
"""Seconds after which a case is given up, so that the others run; no result depends on it."""


class Hang(BaseException):
    pass


def _hang(*_: Any) -> None:
    raise Hang


def peak(reset: bool = False) -> int:
    """The most bytes of memory that the process has held since the last reset, where the system can reset it."""
    if reset:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def run(command: str) -> dict[str, Any]:
    """Exit code and output of one command, and by how many bytes the peak of memory grew."""
    before, code = peak(reset=True), None
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        signal.alarm(HANG)
        try:
            main(list(COMMANDS[command]))
        except SystemExit as exit:
            code = exit.code
        except Hang:
            code = "hangs"
        finally:
            signal.alarm(0)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        texts = [_read(file) for file in (out, err)]
    return {"code": code, "out": texts[0], "err": texts[1], "growth": peak() - before}


def _read(file: Any) -> str:
    file.seek(0)
    return file.read(1 << 20).decode(errors="replace")


def run_case(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        case.write(folder)
        os.chdir(folder)
        try:
            return {command: run(command) for command in case.commands}
        finally:
            os.chdir("/")


def serve() -> None:
    """Answers with command -> result."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + ROOM, resource.RLIM_INFINITY))
    gc.freeze()  # what is loaded needn't be looked at with each case
    for line in sys.stdin:
        gc.collect()  # what earlier cases left in circles counts as room that this one lacks
        case = CASES[line.rstrip()]
        print(json.dumps(run_case(case)), flush=True)


if __name__ == "__main__":
    serve()
