"""The curve of a learning rate range test as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from forcereg.report.plot import COLOURS, figure_type, rendered


def picture(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float], kind: str
) -> bytes:
    """Loss against rate, what is marked as lines. Raises ForceregError without matplotlib."""
    figure = figure_type()(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=COLOURS[3], linewidth=1, alpha=0.6, label="loss")
    axes.plot(rates, smoothed, color=COLOURS[0], label="smoothed")
    for place, (name, rate) in enumerate(marks.items(), 1):
        axes.axvline(rate, color=COLOURS[place], linestyle="--", linewidth=1.3, label=f"{name}: {rate:.3g}")
    # what it came to when it fled would press all else flat
    finite = [value for value in (*losses, smoothed[0]) if math.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite[0], smoothed[0])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low or 1.0))
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return rendered(figure, kind)
