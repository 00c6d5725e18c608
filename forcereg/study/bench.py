"""Where forward passes are measured: on a device, by the runtime that will run them, with so many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import forcereg.exports.runtimes  # noqa: F401  (registers them)
from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.net.module import Net
from forcereg.registry import runtime as runtimes
from forcereg.report.latency import Latency, Trial, device_text
from forcereg.system.device import choose_device, prepare

TORCH = "torch"


@dataclass(frozen=True)
class Bench:
    """`runtime`: a registered name. `threads`: None for as many as torch takes."""

    device: torch.device
    runtime: str = TORCH
    threads: int | None = None

    @property
    def exports(self) -> bool:
        """Whether nets are measured as they are written for use elsewhere, not as torch modules."""
        return self.runtime != TORCH

    @property
    def count(self) -> int:
        """The number of threads."""
        return self.threads or torch.get_num_threads()

    @property
    def text(self) -> str:
        """For people: device, threads, and the runtime with its version if it isn't torch."""
        on = device_text(self.device, self.count)
        return f"{on}, {self.runtime} {self.version}".rstrip() if self.exports else on

    @property
    def version(self) -> str:
        """Of the runtime's package as it is installed; empty where what runs isn't one."""
        try:
            return version(runtimes.about(self.runtime).params[-1])
        except PackageNotFoundError:
            return ""

    def run(self, net: Net, inputs: Mapping[str, Tensor]) -> Callable[[], Any]:
        """A call of a net on these inputs. Raises ForceregError where the runtime doesn't take it."""
        try:
            run: Callable[[], Any] = runtimes.get(self.runtime)(net, inputs, self.count)
        except ForceregError:
            raise
        except Exception as error:
            if not self.exports:
                raise
            what = ", ".join(spec.name for spec in net.spec.layers if spec.type != "Input")
            why = " ".join(str(error).split())
            raise ForceregError(f"{self.runtime} doesn't take {what}: {why}") from error
        return run

    def found(self, batch: int | None, trials: Sequence[Trial], net: Sequence[float] | None) -> Latency:
        """What was measured here, as it is reported."""
        threads = self.count if self.device.type == "cpu" else None
        return Latency(self.text, batch, trials, net, self.runtime, threads)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it lasts torch has this bench's threads."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def bench_of(device: str | torch.device, runtime: str = TORCH, threads: int | None = None) -> Bench:
    """The bench asked for, ready. Raises UsageError for what doesn't go together, ForceregError for what is missing."""
    if runtime not in runtimes:
        hint = did_you_mean(runtime, runtimes) or f"; expected {', '.join(runtimes)}"
        raise UsageError(f"unknown runtime '{runtime}'{hint}")
    about = runtimes.about(runtime)
    if missing := [name for name in about.params if find_spec(name) is None]:
        raise ForceregError(f"--runtime {runtime} needs {' and '.join(missing)}; install with {about.limits}")
    chosen = measuring_device(device)
    if chosen.type != "cpu" and runtime != TORCH:
        raise UsageError(f"--runtime {runtime} runs on the CPU; use cpu in place of {device}, or --runtime torch")
    if chosen.type != "cpu" and threads is not None:
        raise UsageError(f"--threads is for the CPU, and {device} is none; leave it out, or use cpu")
    return Bench(chosen, runtime, threads)


def bench_if(latency: str | torch.device | None, runtime: str = TORCH, threads: int | None = None) -> Bench | None:
    """The bench asked for; None where nothing is measured, with which neither runtime nor threads go. Raises as it."""
    if latency is None:
        unmeasured(runtime, threads)
        return None
    return bench_of(latency, runtime, threads)


def measuring_device(asked: str | torch.device) -> torch.device:
    """The device asked for, made ready, and never another in its place. Raises UsageError and ForceregError."""
    # training goes on with a CPU where there is no GPU, but a CPU's times aren't a GPU's
    device = choose_device(str(asked), None, lambda text: None)
    if device.type == "cpu" and str(asked).startswith("cuda"):
        raise ForceregError(f"there is no CUDA device to measure on, but {asked} was asked for; use cpu")
    prepare(device)
    return device


def unmeasured(runtime: str, threads: int | None) -> None:
    """Raises UsageError for a runtime or threads where nothing is to be measured."""
    if runtime != TORCH or threads is not None:
        given = "--threads" if runtime == TORCH else "--runtime"
        raise UsageError(f"{given} is how --latency cpu measures; give that too")
