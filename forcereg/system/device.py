"""Which device a run uses, and what float32 means on it."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forcereg.errors import ForceregError, UsageError


def choose_device(asked: str | None, param: Any, warn: Callable[[str], None]) -> torch.device:
    """The device of a run: `asked` ("auto", "cpu", "cuda", "cuda:N") wins, else the solver_mode that is
    written (`param`: SolverParameter or None), else CUDA if present. CUDA asked for in vain: `warn`, then CPU.
    Raises UsageError for a device that isn't one, ForceregError for such a device_id.
    """
    name = asked
    if name is None and param is not None and param.HasField("solver_mode"):
        gpu = param.solver_mode == param.SolverMode.Value("GPU")
        if gpu and param.device_id < 0:
            raise ForceregError(f"the solver's device_id is {param.device_id}; expected >= 0, GPUs are counted from 0")
        name = f"cuda:{param.device_id}" if gpu else "cpu"
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit())):
        raise UsageError(f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "asked for on the command line" if asked else "the solver's solver_mode"
        warn(f"GPU ({why}) but no CUDA device is available: running on the CPU")
        return torch.device("cpu")
    # with its number: tensors tell "cuda" and "cuda:0" apart
    device = torch.device(name if ":" in name else f"cuda:{torch.cuda.current_device()}")
    if device.index >= torch.cuda.device_count():
        raise UsageError(f"there is no GPU {device.index}; {torch.cuda.device_count()} found, counted from 0")
    return device


FACTS = (
    "shared_memory_per_block",
    "regs_per_multiprocessor",
    "warp_size",
    "max_threads_per_multi_processor",
    "L2_cache_size",
)
"""What more torch may tell of a GPU, by its names."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: `number` from 0 on, `capability` (major, minor), memory in bytes; `more`: those of `FACTS`."""

    number: int
    name: str
    capability: tuple[int, int]
    total_memory: int
    free_memory: int
    multiprocessors: int
    more: dict[str, int]

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.capability >= (8, 0)


def gpus(numbers: Sequence[int] | None = None) -> list[Gpu]:
    """The CUDA devices of these numbers, None for all; none where there is no CUDA. Raises UsageError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return []
    numbers = range(count) if numbers is None else numbers
    if wrong := [number for number in numbers if not 0 <= number < count]:
        raise UsageError(f"there is no GPU {max(wrong)}; {count} found, counted from 0")
    return list(map(_gpu, numbers))


def _gpu(number: int) -> Gpu:
    found = torch.cuda.get_device_properties(number)
    free, _ = torch.cuda.mem_get_info(number)
    more = {name: getattr(found, name) for name in FACTS if hasattr(found, name)}
    capability = (found.major, found.minor)
    return Gpu(number, found.name, capability, found.total_memory, free, found.multi_processor_count, more)


def prepare(device: torch.device, tf32: bool = False, deterministic: bool = False) -> None:
    """Makes float32 mean float32 (TF32 off unless asked for) and, if asked, every operation deterministic."""
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        set_tf32(tf32)
        # what is chosen by time may be another kernel in the next run
        torch.backends.cudnn.benchmark = not deterministic
    else:
        keep_freed_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        # warns where there is no deterministic kernel: to stop would leave such nets without any
        torch.use_deterministic_algorithms(True, warn_only=True)


def shapes_change(device: torch.device) -> None:
    """Ends cuDNN's trials of its kernels, which begin anew with every shape, because batches come in many."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False


def set_tf32(on: bool) -> None:
    """Lets float32 products and convolutions of GPUs take TF32, or not, whatever was chosen before.

    Both by torch's old switches and, where there are any (from 2.9 on), by the new ones: the old alone leave cuDNN as
    `torch.backends.fp32_precision` says, and where the two differ torch raises when it looks.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old ones are deprecated
        matmul.allow_tf32 = cudnn.allow_tf32 = on
    if hasattr(torch.backends, "fp32_precision"):
        for part in (matmul, cudnn.conv, cudnn.rnn):
            part.fp32_precision = "tf32" if on else "ieee"


@functools.cache
def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The stream of a GPU for one purpose; the same for all solvers of a process.

    Libraries keep a workspace for every stream that they have worked on: tens of megabytes for cuBLAS.
    """
    return torch.cuda.Stream(device)


def keep_freed_memory() -> None:
    """Lets glibc keep freed activations for the next iteration instead of giving them back to the system.

    Otherwise every iteration faults the same pages in again: 1,200 faults or a fifth of the time of a LeNet
    step. Applies to the process; does nothing where the C library is another one. Larger blocks than glibc's maximum
    go back, which costs a tenth of AlexNet's forward pass: kept, they would leave holes that other nets don't fit.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # set by hand, it no longer moves with what is freed
    mallopt(m_mmap_threshold, 32 << 20)  # glibc's maximum
    mallopt(m_trim_threshold, 2**31 - 1)
