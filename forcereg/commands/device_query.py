"""forcereg device_query"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import asked_devices

if TYPE_CHECKING:
    from forcereg.system.device import Gpu

GIB = 1 << 30
NAMES = {
    "shared_memory_per_block": "Total shared memory per block",
    "regs_per_multiprocessor": "Total registers per processor",
    "warp_size": "Warp size",
    "max_threads_per_multi_processor": "Threads per multiprocessor",
    "L2_cache_size": "L2 cache",
}
"""torch's name of what a GPU may tell -> Caffe's, or one like it."""


@click.command(cls=CaffeCommand, epilog="\b\nExample: forcereg device_query --gpu all")
@click.option("--gpu", metavar="N|N,M|all", default="all", show_default=True, help="GPUs to ask, counted from 0.")
def command(gpu: str) -> None:
    """Print what there is to know of the CUDA devices, and of the PyTorch that would use them."""
    import torch

    from forcereg.solver.log import GlogWriter
    from forcereg.workflows.device_query import devices

    log = GlogWriter(file="device_query.py")
    asked = asked_devices(gpu, None)
    log.line(f"Querying GPUs {gpu}")
    log.line(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    numbers = [number for device in asked if (number := str(device).partition(":")[2])]
    found = devices([int(number) for number in numbers] or "all")
    if not found:
        log.line("no CUDA device")
    for device in found:
        for name, value in _facts(device):
            log.line(f"{name + ':':<31}{value}")


def _facts(found: Gpu) -> list[tuple[str, object]]:
    """Name and value of everything, Caffe's names where it has one."""
    import torch

    facts: list[tuple[str, object]] = [
        ("Device id", found.number),
        ("Major revision number", found.capability[0]),
        ("Minor revision number", found.capability[1]),
        ("Name", found.name),
        ("Total global memory", f"{found.total_memory} ({found.total_memory / GIB:.1f} GiB)"),
        ("Free global memory", f"{found.free_memory} ({found.free_memory / GIB:.1f} GiB)"),
        ("Number of multiprocessors", found.multiprocessors),
        ("cuDNN", torch.backends.cudnn.version() or "not built in"),
        ("bfloat16 arithmetic", "Yes" if found.bfloat16 else "No"),
    ]
    return facts + [(NAMES[name], value) for name, value in found.more.items()]
