"""What one training step of forcereg does and allocates, by torch.profiler; `train.py --profile NET` prints it.

An activation or a gradient has to be allocated; what data, force and update work in should be kept from step to step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver

PHASES = "data", "forward", "backward", "update"
PHASE = "phase:"
BACKWARD = "autograd::engine::evaluate_function: "
SMALL = 4096
"""Bytes; less is a number or a vector per filter, as bias gradients and losses are."""


@dataclass
class Allocation:
    """Memory that an operation of a phase took; `life` tells when it was freed again: within the "operation",
    later in the same "step", or "beyond" it."""

    phase: str
    operation: str
    size: int
    life: str = "beyond"


def activations(solver: Solver) -> int:
    """Bytes of all the train net's blobs."""
    return sum(4 * math.prod(shape) for shape in solver.net.shapes.values())


def gradients(solver: Solver) -> int:
    """Bytes of the gradients of all its weights."""
    return sum(4 * weight.numel() for weight in solver.net.parameters() if weight.requires_grad)


@contextmanager
def marked(owner: Any, method: str, name: str) -> Iterator[None]:
    """Shows the calls of an object's method to the profiler as `name`."""
    from torch.profiler import record_function

    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return original(*args, **kwargs)

    setattr(owner, method, call)
    try:
        yield
    finally:
        delattr(owner, method)  # the class's own is there again


def profiled(solver: Solver, steps: int = 1) -> Any:
    """The profile of `steps` steps, after as many as it takes for buffers and data to be there."""
    from torch.profiler import ProfilerActivity, profile

    solver.step(3)
    with ExitStack() as stack:
        for feed in solver.net.feeds.values():
            stack.enter_context(marked(feed, "next", PHASE + "data"))
        stack.enter_context(marked(solver.updater, "apply", PHASE + "update"))
        profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        solver.step(steps)
    return profiler


def allocations(profiler: Any) -> list[Allocation]:
    """Every allocation in a profile by `profiled`, in order."""
    found: list[Allocation] = []
    held: dict[int, tuple[Allocation, int]] = {}  # by address: what isn't freed yet, and the operation's start

    def visit(node: Any, phase: str, operation: str, began: int) -> None:
        if node.name == "[memory]":
            memory = node.typed[1]
            if memory.alloc_size > 0:
                found.append(Allocation(phase, operation, memory.alloc_size))
                held[memory.ptr] = found[-1], began
            elif memory.ptr in held:
                allocation, then = held.pop(memory.ptr)
                allocation.life = "operation" if began == then else "step"
            return
        if node.name.startswith(PHASE):
            phase = node.name.removeprefix(PHASE)
        elif not operation:
            operation, began = node.name.removeprefix(BACKWARD), node.start_time_ns
            phase = "backward" if node.name.startswith(BACKWARD) else phase
        for child in node.children:
            visit(child, phase, operation, began)

    for root in profiler.profiler.kineto_results.experimental_event_tree():  # events() has sums, no addresses
        visit(root, "forward", "", 0)
    return found


def profile_step(solver: Solver) -> None:
    """Prints a step's most expensive operations and its allocations, the latter beside what has to be allocated."""
    profiler = profiled(solver)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
    found = [one for one in allocations(profiler) if one.size >= SMALL]
    sums: Counter[tuple[str, str, str]] = Counter()
    numbers: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        sums[one.phase, one.operation, one.life] += one.size
        numbers[one.phase, one.operation, one.life] += 1
    print(f"allocations of {SMALL} bytes and more in one step\n{'':10}{'operation':50}{'freed in':11}number{'KiB':>10}")
    for key, size in sorted(sums.items(), key=lambda item: (PHASES.index(item[0][0]), -item[1])):
        phase, operation, life = key
        print(f"{phase:10}{operation[:49]:50}{life:9}{numbers[key]:8}{size / 1024:10.0f}")
    total = {phase: sum(one.size for one in found if one.phase == phase) for phase in PHASES}
    print("\nin KiB: " + ", ".join(f"{phase} {size / 1024:.0f}" for phase, size in total.items()))
    print(f"to compare: the net's blobs {activations(solver) / 1024:.0f}, weights {gradients(solver) / 1024:.0f}")
