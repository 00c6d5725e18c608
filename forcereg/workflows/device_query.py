"""What GPUs there are: `forcereg device_query`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forcereg.system.device import Gpu, gpus


def devices(gpu: Literal["all"] | int | Sequence[int] = "all") -> list[Gpu]:
    """The CUDA devices of these numbers, counted from 0, or all; none where there is no CUDA.

    Each has `.number`, `.name`, `.capability` (major, minor), `.total_memory` and `.free_memory` in bytes,
    `.multiprocessors`, `.bfloat16`, whether it computes in that, and `.more`, by torch's names. Raises UsageError for a
    number that no device has.

    >>> for device in forcereg.devices():
    ...     print(device.number, device.name, device.free_memory >> 30, "GiB free")
    """
    return gpus(None if gpu == "all" else [gpu] if isinstance(gpu, int) else gpu)
