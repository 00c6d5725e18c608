"""How the cost of the force and of the decompositions grows with the number of filters and with their length.

    python scripts/bench/growth.py [--seconds 0.2] [--json FILE] [--quick]

Medians of warm runs, at most `--seconds` for a cell once it has run twice; the exponent is the least squares slope of
log(time) over log(size), over all sizes and over the larger half, where launching no longer counts. The force is
added to a gradient as a training step does it; a decomposition starts from the weight and ends with the factors of
rank 8. Then the force on 1024 filters of 9216 values against its two float64 matrix products alone, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from contest import machine
from table import Figure, rows, write_figures

from forcereg.errors import ForceregError
from forcereg.lowrank import Ladder
from forcereg.registry import factorizer, force_type
from forcereg.solver.force import ForceField

FILTERS = (64, 128, 256, 512, 1024, 2048, 4096)
CHANNELS = (8, 16, 32, 64, 128, 256, 512, 1024)
QUICK = (16, 32, 64)
OF_FILTERS, OF_CHANNELS = 256, 64
"""Filters while their length grows (those that are decomposed are as many as OF_CHANNELS), and channels otherwise."""
KERNEL = 3
RANK = 8
LARGE, LARGE_QUICK = (1024, 9216), (96, 576)
ROUNDS = 7
GOAL = 1.3
Run = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """The seconds that one thing takes at each size; the last sizes are missing where it can't run."""

    part: str
    of: str
    name: str
    sizes: Sequence[int]
    seconds: Sequence[float]

    def exponent(self, larger: bool = False) -> float:
        """The fitted slope, of the larger half of the sizes if asked for; NaN below two points."""
        start = len(self.seconds) // 2 if larger else 0
        x, y = np.log(self.sizes[start : len(self.seconds)]), np.log(self.seconds[start:])
        return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else float("nan")


def seconds_of(run: Run, budget: float) -> float:
    """Median of warm runs: two at least, as many as fit into `budget`; of the second alone where one takes longer."""
    run()
    times: list[float] = []
    while not times or sum(times) < budget:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def weight_of(filters: int, channels: int) -> torch.Tensor:
    """A random weight with a kernel."""
    return torch.randn(filters, channels, KERNEL, KERNEL, generator=torch.Generator().manual_seed(1))


def force(kind: str, weight: torch.Tensor) -> Run:
    """The force as a training step adds it."""
    grads, field = [torch.zeros_like(weight)], ForceField([weight], [1e-3], kind)
    return lambda: field.add_to(grads)


def decomposition(method: str, weight: torch.Tensor) -> Run:
    """From the weight to its factors."""
    return lambda: Ladder(weight, method).factors(RANK)


def measured(
    part: str, make: Callable[[str, torch.Tensor], Run], names: Iterable[str], fixed: int, quick: bool, budget: float
) -> list[Growth]:
    """Every name against the number of filters, then against their length with `fixed` filters."""
    found = []
    by_filters = {n: (n, OF_CHANNELS) for n in (QUICK if quick else FILTERS)}
    by_length = {c * KERNEL**2: (fixed, c) for c in (QUICK if quick else CHANNELS)}
    for of, shapes in (("filters", by_filters), ("length", by_length)):
        for name in names:
            seconds = []
            try:
                for shape in shapes.values():
                    seconds.append(seconds_of(make(name, weight_of(*shape)), budget))
            except ForceregError as error:  # a library that isn't installed
                print(f"{name}: {error}")
                continue
            found.append(Growth(part, of, name, list(shapes), seconds))
    return found


def print_growth(found: Sequence[Growth], of: str, title: str) -> None:
    """Milliseconds, a column a size, and the exponents."""
    chosen = [one for one in found if one.of == of]
    if not chosen:
        return
    print(f"\n{title}, ms\n{of:>12}" + "".join(f"{size:>9}" for size in chosen[0].sizes) + "   exponent (larger half)")
    for one in chosen:
        cells = "".join(f"{1e3 * seconds:9.3g}" for seconds in one.seconds)
        print(f"{one.name:>12}{cells}{one.exponent():11.2f} ({one.exponent(larger=True):.2f})")


def against_products(shape: tuple[int, int], rounds: int) -> Mapping[str, list[float]]:
    """Seconds of each round: the products alone, and the force of each type, all in turn."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = weight.double()
    gram, pulls = values.new_empty(len(values), len(values)), torch.empty_like(values)

    def products() -> None:
        torch.mm(values, values.mT, out=gram)
        torch.mm(gram, values, out=pulls)

    runs: dict[str, Run] = {"two products": products, **{kind: force(kind, weight) for kind in force_type}}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if index:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return times


def figures(found: Sequence[Growth], times: Mapping[str, Sequence[float]], shape: tuple[int, int]) -> list[Figure]:
    """The force against its products, and the steepest growth of each table."""
    products = statistics.median(times["two products"])
    what = f"{{}} force {shape[0]}x{shape[1]} / its two products"
    told = [
        Figure("growth", what.format(name), statistics.median(seconds) / products, GOAL)
        for name, seconds in times.items()
        if name != "two products"
    ]
    for part, of in dict.fromkeys((one.part, one.of) for one in found):
        same = [one for one in found if (one.part, one.of) == (part, of)]
        steepest = max(same, key=Growth.exponent)
        told.append(
            Figure("growth", f"{part}: steepest exponent in {of}, {steepest.name}", steepest.exponent(), unit="")
        )
    return told


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="time for a cell, beyond two runs (default 0.2)")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each: only to see that it works")
    args = parser.parse_args()
    budget, shape = (0.0, LARGE_QUICK) if args.quick else (args.seconds, LARGE)
    on = machine()
    print(on)
    length = OF_CHANNELS * KERNEL**2
    forces = measured("force", force, force_type, OF_FILTERS, args.quick, budget)
    print_growth(forces, "filters", f"force, filters of {length} values")
    print_growth(forces, "length", f"force, {OF_FILTERS} filters")
    methods = measured("decomposition", decomposition, factorizer, OF_CHANNELS, args.quick, budget)
    print_growth(methods, "filters", f"decomposition, filters of {length} values")
    print_growth(methods, "length", f"decomposition, {OF_CHANNELS} filters")
    times = against_products(shape, 1 if args.quick else ROUNDS)
    told = figures([*forces, *methods], times, shape)
    print("", *rows(told), sep="\n")
    if args.json:
        details = {"growth": [asdict(one) for one in (*forces, *methods)], "large": dict(times)}
        write_figures(args.json, told, details, on)


if __name__ == "__main__":
    main()
