"""What Caffe keeps for a process: the device, random numbers, the log; and what says that a call can't be answered."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from forcereg import registry
from forcereg.errors import Fatal, ForceregError, UserCodeError
from forcereg.layers.pycaffe.vectors import StringVec
from forcereg.solver.log import GlogWriter
from forcereg.system.device import choose_device, prepare
from forcereg.system.events import Event

INFO, WARNING = 0, 1
"""glog's severities."""
GLOG = "GLOG_minloglevel"


@dataclass
class State:
    """Modes, seeds and places of this process. `log_level`: as `init_log` was told, if it was."""

    gpu: bool = False
    device: int = 0
    seed: int | None = None
    solver_count: int = 1
    solver_rank: int = 0
    multiprocess: bool = False
    log_level: int | None = None
    warned: bool = False


STATE = State()


class ArgumentError(TypeError):
    """Arguments of another number or type than a call takes, as Boost.Python raises it."""


ArgumentError.__module__ = "Boost.Python"


@contextmanager
def fatal() -> Iterator[None]:
    """Raises our errors as Fatal, and what users' own layers raised as it was."""
    try:
        yield
    except UserCodeError as error:
        raise error.__cause__ or error from None
    except Fatal:
        raise
    except ForceregError as error:
        raise Fatal(str(error)) from error.__cause__


# -- the device


def set_mode_cpu() -> None:
    """Nets compute on the CPU from their next pass on."""
    STATE.gpu = False


def set_mode_gpu() -> None:
    """Nets compute on the GPU of `set_device` from their next pass on; without one on the CPU, with a warning."""
    STATE.gpu = True


def set_device(device: Any) -> None:
    """Which GPU `set_mode_gpu` means, counted from 0.

    Raises RuntimeError for one that isn't there, TypeError (ArgumentError) for what is no whole number.
    """
    device = _whole("set_device", device)
    if device < 0 or (torch.cuda.is_available() and device >= torch.cuda.device_count()):
        raise Fatal(f"there is no GPU {device}; {torch.cuda.device_count()} found, counted from 0")
    STATE.device = device


def current_device() -> torch.device:
    """Where nets compute now."""
    if not STATE.gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return choose_device(f"cuda:{STATE.device}", None, warn)
    if not STATE.warned:
        STATE.warned = True
        warn("GPU (caffe.set_mode_gpu) but no CUDA device is available: running on the CPU")
    return torch.device("cpu")


def ready_device() -> torch.device:
    """`current_device`, set up for float32."""
    device = current_device()
    prepare(device)
    return device


# -- random numbers


def set_random_seed(seed: Any) -> None:
    """What fillers, Dropout and data layers draw from here on follows from `seed`.

    Raises OverflowError for one below 0 or above 32 bits, TypeError (ArgumentError) for what is no whole number.
    """
    number = _whole("set_random_seed", seed)
    if not 0 <= number < 1 << 32:
        raise OverflowError(f"set_random_seed({number}): expected 0 to 2^32 - 1")
    torch.manual_seed(number)
    STATE.seed = number


def _whole(call: str, value: Any) -> int:
    try:
        return int(value.__index__())
    except AttributeError:
        raise ArgumentError(f"{call}({type(value).__name__}): expected a whole number") from None


def next_seed() -> int | None:
    """A seed for the next net's data layers; None where nobody has set one."""
    return None if STATE.seed is None else int(torch.randint(1 << 31, ()))


# -- several solvers


def solver_count() -> int:
    """How many solvers train together, as `set_solver_count` was told."""
    return STATE.solver_count


def set_solver_count(count: int) -> None:
    """Notes how many solvers train together."""
    STATE.solver_count = count


def solver_rank() -> int:
    """The number of this process's solver."""
    return STATE.solver_rank


def set_solver_rank(rank: int) -> None:
    """Notes the number of this process's solver."""
    STATE.solver_rank = rank


def multiprocess() -> bool:
    """Whether solvers are processes, as `set_multiprocess` was told."""
    return STATE.multiprocess


def set_multiprocess(multiprocess: bool) -> None:
    """Notes whether solvers are processes."""
    STATE.multiprocess = multiprocess


def has_nccl() -> bool:
    """Whether NCCL objects do anything: never."""
    return False


class NCCL:
    """Stands for Caffe's; to make one, or to call its methods, raises RuntimeError that says what to do instead."""

    def __init__(self, solver: Any = None, uid: Any = "") -> None:
        raise Fatal(_TORCHRUN)

    @staticmethod
    def new_uid() -> bytes:
        """Raises RuntimeError."""
        raise Fatal(_TORCHRUN)

    def bcast(self) -> None:
        """Raises RuntimeError."""
        raise Fatal(_TORCHRUN)


_TORCHRUN = (
    "caffe.NCCL isn't available: several GPUs train by `forcereg train --solver S --gpu 0,1`, or by torchrun: "
    "torchrun --nproc-per-node 2 -m forcereg train --solver S"
)


# -- the log


def log_level() -> int:
    """The lowest severity that is written: by `init_log`, or by the environment, which scripts may still set."""
    if STATE.log_level is not None:
        return STATE.log_level
    given = os.environ.get(GLOG, "").strip()
    return int(given) if given.isdigit() else INFO


def init_log(level: int | None = None, to_stderr: bool | None = None) -> None:
    """Lines of lower severity than `level` (0 INFO, 1 WARNING, 2 ERROR) are left out; the log is standard error."""
    if level is not None:
        STATE.log_level = level


def log(text: str) -> None:
    """Writes a line of severity INFO."""
    if log_level() <= INFO:
        GlogWriter(file="pycaffe.py").line(text)


def warn(text: str) -> None:
    """Writes a line of severity WARNING."""
    if log_level() <= WARNING:
        GlogWriter(file="pycaffe.py").line(text, "W")


def write_event(event: Event) -> None:
    """Writes what a solver tells, as Caffe's lines."""
    if log_level() <= (WARNING if event.kind == "warning" else INFO):
        GlogWriter()(event)


# -- the rest


def layer_type_list() -> StringVec:
    """The layer types that there are, sorted."""
    return StringVec(sorted({*registry.layer, *registry.source}))


class Timer:
    """Measures between `start` and `stop`: `ms`; in GPU mode by the GPU's own clock."""

    def __init__(self) -> None:
        self._begun: Any = None
        self._ended: Any = None

    def start(self) -> None:
        """Begins."""
        self._begun, self._ended = self._now(), None

    def stop(self) -> None:
        """Ends."""
        if self._begun is not None:
            self._ended = self._now()

    @property
    def ms(self) -> float:
        """Milliseconds from start to stop, or until now; 0 before the first start."""
        if self._begun is None:
            return 0.0
        if self._ended is None:
            self.stop()
        if isinstance(self._begun, float):
            return (self._ended - self._begun) * 1000
        self._ended.synchronize()
        return float(self._begun.elapsed_time(self._ended))

    @staticmethod
    def _now() -> Any:
        if current_device().type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
