"""How much memory is left, and what it looks like when there isn't enough.

A system promises more memory than it has, and ends the process when that comes out; so what will be needed for
certain is compared with what there is before it is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.spec import LayerSpec

ALL_OF_IT = 1 << 62


def free_memory() -> int:
    """Bytes that a process may still take: of the machine and of its control group. Huge if the system doesn't tell."""
    machine = _table(Path("/proc/meminfo"))
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


def check_room(needed: Iterable[tuple[LayerSpec, int]], what: str) -> None:
    """Raises ForceregError, about the layer that needs most, if all these bytes can't be had; `what` says for what."""
    layers, sizes, free = dict[str, LayerSpec](), Counter[str](), free_memory()
    for spec, size in needed:
        layers[spec.name] = spec
        sizes[spec.name] += size
    if sizes.total() > free:
        ((name, most),) = sizes.most_common(1)
        share = f"{_gib(most)} of the {_gib(sizes.total())}" if len(sizes) > 1 else _gib(most)
        raise layers[name].fail(
            f"needs {share} for {what}, but only {_gib(free)} of memory are free; use smaller sizes"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def is_shortage(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or PyTorch says that memory has run out."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def shortage(error: BaseException) -> ForceregError:
    """Such an exception as an error for the user."""
    tried = re.search(r"[Tt]ried to allocate [\d.]+ \w+|Unable to allocate [\d.]+ \w+", str(error))
    found = f" ({tried[0].lower()})" if tried else ""
    return ForceregError(f"not enough memory{found}; use a smaller batch or smaller layers")
