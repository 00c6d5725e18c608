"""How much memory is left, and what it looks like when there isn't enough.

A system promises more memory than it has, and ends the process when that comes out; so what will be needed for
certain is compared with what there is before it is written.
"""

from __future__ import annotations

import errno
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from forcereg.errors import ForceregError

ALL_OF_IT = 1 << 62
LEAST = 1_000_000_000
"""Bytes of address space without which PyTorch, its libraries and threads can't be had."""
WORDS = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|bad_alloc|failed to map segment"
    "|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)
"""What torch, the loader of libraries, and threads say."""


def free_memory() -> int:
    """Bytes that a process may still take: of the machine and of its control group. Huge if the system doesn't tell."""
    machine = _table(Path("/proc/meminfo"))
    # what programs may take without swapping, and what may be swapped out
    kibibytes = machine.get("MemAvailable:", ALL_OF_IT >> 10) + machine.get("SwapFree:", 0)
    return min(kibibytes << 10, _group_memory(Path("/sys/fs/cgroup")))


def _group_memory(folder: Path) -> int:
    """What a control group (version 2) still allows; pages of files don't count, they can be given up."""
    try:
        limit = int((folder / "memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return ALL_OF_IT
    return max(0, limit - _table(folder / "memory.stat").get("anon", 0))


def _table(path: Path) -> dict[str, int]:
    """The lines `name number ...` of a file, empty if it can't be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def address_space() -> int:
    """Bytes that the process may map (`ulimit -v`). Huge without a limit."""
    try:
        import resource
    except ImportError:  # no such limits on Windows
        return ALL_OF_IT
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return ALL_OF_IT if limit == resource.RLIM_INFINITY else limit


def refuse_what_cannot_be_loaded() -> None:
    """Lets numpy and PyTorch not be imported where there isn't room: in the middle of it they end the process."""
    if address_space() < LEAST:
        # in front: the first that knows a module loads it
        sys.meta_path.insert(0, _NoRoom())


class _NoRoom:
    def find_spec(self, name: str, *_: Any) -> None:
        """Raises ForceregError for what has no room."""
        if name in ("numpy", "torch"):
            raise ForceregError(
                f"not enough memory: `ulimit -v` allows {address_space() / 1e9:.2f} GB, what computes is loaded "
                f"into {LEAST / 1e9:g} GB at least; raise the limit"
            )


class _Layer(Protocol):
    """A LayerSpec, as far as it matters here."""

    @property
    def name(self) -> str: ...

    def fail(self, text: str) -> ForceregError: ...


def check_room(needed: Iterable[tuple[_Layer, int]], what: str) -> None:
    """Raises ForceregError, about the layer that needs most, if all these bytes can't be had; `what` says for what."""
    layers: dict[str, _Layer] = {}
    sizes, free = Counter[str](), free_memory()
    for spec, size in needed:
        layers[spec.name] = spec
        sizes[spec.name] += size
    if sizes.total() > free:
        # one layer is named, and it is the one whose sizes to change
        ((name, most),) = sizes.most_common(1)
        share = f"{_gib(most)} of the {_gib(sizes.total())}" if len(sizes) > 1 else _gib(most)
        raise layers[name].fail(
            f"needs {share} for {what}, but only {_gib(free)} of memory are free; use smaller sizes"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def is_shortage(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or PyTorch says that memory has run out."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, SystemError):  # "error return without exception set": of C code that couldn't make one
        return address_space() < ALL_OF_IT
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and WORDS.search(str(error)) is not None
    )


def shortage(error: BaseException) -> ForceregError:
    """Such an exception as an error for the user."""
    tried = re.search(r"[Tt]ried to allocate [\d.]+ \w+|Unable to allocate [\d.]+ \w+", str(error))
    found = f" ({tried[0].lower()})" if tried else ""
    limit = address_space()
    fix = f"raise `ulimit -v`, which allows {limit / 1e9:.2f} GB, or " if limit < ALL_OF_IT else ""
    return ForceregError(f"not enough memory{found}; {fix}use a smaller batch or smaller layers")
