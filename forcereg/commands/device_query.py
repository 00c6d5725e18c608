"""forcereg device_query"""

from __future__ import annotations

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import asked_devices
from forcereg.errors import UsageError

GIB = 1 << 30


@click.command(cls=CaffeCommand, epilog="\b\nExample: forcereg device_query --gpu all")
@click.option("--gpu", metavar="N|N,M|all", default="all", show_default=True, help="GPUs to ask, counted from 0.")
def command(gpu: str) -> None:
    """Print what there is to know of the CUDA devices, and of the PyTorch that would use them."""
    import torch

    from forcereg.solver.log import GlogWriter

    log = GlogWriter(file="device_query.py")
    devices = asked_devices(gpu, None)
    log.line(f"Querying GPUs {gpu}")
    log.line(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        log.line("no CUDA device")
        return
    numbers = [int(str(device).partition(":")[2]) for device in devices]
    if max(numbers) >= count:
        raise UsageError(f"there is no GPU {max(numbers)}; {count} found, counted from 0")
    for number in numbers:
        for name, value in _facts(number):
            log.line(f"{name + ':':<31}{value}")


def _facts(number: int) -> list[tuple[str, object]]:
    """Name and value of everything, Caffe's names where it has one."""
    import torch

    found = torch.cuda.get_device_properties(number)
    free, _ = torch.cuda.mem_get_info(number)
    facts: list[tuple[str, object]] = [
        ("Device id", number),
        ("Major revision number", found.major),
        ("Minor revision number", found.minor),
        ("Name", found.name),
        ("Total global memory", f"{found.total_memory} ({found.total_memory / GIB:.1f} GiB)"),
        ("Free global memory", f"{free} ({free / GIB:.1f} GiB)"),
        ("Number of multiprocessors", found.multi_processor_count),
        ("cuDNN", torch.backends.cudnn.version() or "not built in"),
        ("bfloat16 arithmetic", "Yes" if (found.major, found.minor) >= (8, 0) else "No"),
    ]
    more = {
        "Total shared memory per block": "shared_memory_per_block",
        "Total registers per processor": "regs_per_multiprocessor",
        "Warp size": "warp_size",
        "Threads per multiprocessor": "max_threads_per_multi_processor",
        "L2 cache": "L2_cache_size",
    }
    return facts + [(name, getattr(found, field)) for name, field in more.items() if hasattr(found, field)]
