"""A batch of rounds in a process of its own, so that a native crash, a hang or a bite at memory is noticed.

`python -m tests.fuzz.worker MODULE FOLDER SEED ...` calls MODULE.attempt(random.Random(SEED), FOLDER) for each seed and
prints the seed before and, as the last line of all, the end.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tests.nursery import Nursery

END = "all rounds are done"
HANG = 60
"""Seconds after which a round is given up, so that the others run; no result depends on it."""
ROOM = 1 << 30
"""Bytes of address space that rounds may take beyond what the process has."""
BATCH = 50


def survive(nursery: Nursery, module: str, rounds: Iterable[random.Random], folder: Path, batch: int = BATCH) -> None:
    """Runs a round of `module` for each chance; asserts that all come to their end."""
    for seeds in _batches(rounds, batch):
        result = nursery.run("-m", "tests.fuzz.worker", module, folder, *seeds, timeout=HANG * (len(seeds) + 1))
        *_, last = result.stdout.splitlines() or [""]
        assert last == END, f"seed {last} of {module}: exit code {result.returncode}; {result.stderr[-3000:]}"


def _batches(rounds: Iterable[random.Random], size: int) -> Iterator[list[str]]:
    seeds = (str(chance.getrandbits(48)) for chance in rounds)
    while batch := list(islice(seeds, size)):
        yield batch


def main(module: str, folder: str, *seeds: str) -> None:
    attempt = importlib.import_module(module).attempt
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    for seed in seeds:
        print(seed, flush=True)
        signal.alarm(HANG)  # its default is to end the process, whatever that is doing
        attempt(random.Random(int(seed)), Path(folder))
    print(END)


if __name__ == "__main__":
    main(*sys.argv[1:])
