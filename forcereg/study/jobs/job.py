"""What one of several processes does, whoever has started it, and what it tells: lines of a file of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.system.events import Event, Tell
from forcereg.system.files import append_text, make_folder
from forcereg.system.memory import is_shortage, shortage

FOLDER = "jobs"
"""The folder, in that of all runs, of what processes tell."""
TOLD = ("note", "warning", "error")
INTERRUPTED = 130
DEADLY = 3
"""Processes of one call that a run may cost by being killed until it is given up."""


@dataclass(frozen=True)
class Job:
    """`work` for each of several processes; it is called with what it tells, and one word for all of the `call`.

    `out`: the runs' folder, where `cwd` is the working directory; `modules`: those that users import; `decoding`: bytes
    that decoding may take; `devices`: the numbers of GPUs, a process each in turn.
    """

    work: Callable[[Tell, str], Any]
    call: str
    out: Path
    cwd: str
    modules: Sequence[str]
    decoding: int
    devices: Sequence[int] = ()

    def told(self, number: int) -> Path:
        """The file of what a process tells."""
        return Path(self.cwd) / self.out / FOLDER / f"{self.call}-{number}.jsonl"


def run(job: Job, number: int) -> int:
    """Does a job as the process `number`, from 0 on; its exit code. What is wrong is told, not raised."""
    os.chdir(job.cwd)
    path = job.told(number)
    make_folder(path.parent)

    def tell(event: Event) -> None:
        if event.kind in TOLD:
            # closed each time: other machines see what is in a closed file; one line less is no reason to end
            with contextlib.suppress(ForceregError), append_text(path) as file:
                file.write(json.dumps({"kind": event.kind, "text": event.text}) + "\n")

    try:
        with _told_to_stop():
            _prepare(job, number)
            job.work(Tell(tell), job.call)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ForceregError as error:
        tell(Event("error", {"text": str(error)}))
        return error.exit_code
    except Exception as error:
        why = str(shortage(error)) if is_shortage(error) else f"internal error: {type(error).__name__}: {error}"
        tell(Event("error", {"text": why}))
        return 1
    return 0


@contextlib.contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM is as Ctrl-C; while a net trains both save it first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare(job: Job, number: int) -> None:
    from forcereg.data.budget import DECODING
    from forcereg.system.plugins import import_module

    DECODING.limit = job.decoding
    for name in job.modules:
        import_module(name)
    if job.devices:
        import torch

        torch.cuda.set_device(job.devices[number % len(job.devices)])
