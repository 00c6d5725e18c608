"""Pictures of curves: one panel each for losses, scores, learning rate and coordination, one colour a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.report.curves import Run

PANELS = ("loss", "score", "learning rate", "rank", "cosine", "force ratio")
KINDS = ("png", "svg", "pdf", "html")
STYLES = ("-", "--", ":", "-.")


def panel_of(curve: str) -> str:
    """The panel that a curve belongs in, by its name."""
    if curve == "lr":
        return "learning rate"
    for panel, ending in (("rank", " rank"), ("cosine", " cosine"), ("force ratio", " ratio")):
        if curve.endswith(ending) and not curve.startswith(("test ", "train ")):
            return panel
    return "loss" if "loss" in curve.lower() else "score"


def chosen(run: Run) -> dict[str, list[str]]:
    """Panel -> names of the run's curves in it. The training net's outputs come only where nothing else would."""
    panels: dict[str, list[str]] = {}
    for curve in run.curves:
        if not curve.startswith("train output "):
            panels.setdefault(panel_of(curve), []).append(curve)
    for curve in run.curves:
        if curve.startswith("train output ") and panel_of(curve) not in panels:
            panels.setdefault(panel_of(curve), []).append(curve)
    return panels


def draw(runs: Sequence[Run], kind: str) -> bytes:
    """The picture of one or several runs in one of `KINDS`. Raises ForceregError without matplotlib."""
    figure = _figure(runs)
    out = io.BytesIO()
    figure.savefig(out, format="svg" if kind == "html" else kind, dpi=120)
    return page(runs, out.getvalue().decode()).encode() if kind == "html" else out.getvalue()


def _figure(runs: Sequence[Run]) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ForceregError('plots need matplotlib; install it with pip install "forcereg[plot]"') from None
    panels = [panel for panel in PANELS if any(panel in chosen(run) for run in runs)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4 * rows), layout="constrained")
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place, title=panel, xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(alpha=0.3)
        for number, run in enumerate(runs):
            for index, name in enumerate(chosen(run).get(panel, ())):
                curve = run.curves[name]
                label = f"{run.name}: {name}" if len(runs) > 1 else name
                few = len(curve.values) < 30
                # with one run colours tell curves apart, with several the runs
                color = f"C{(number if len(runs) > 1 else index) % 10}"
                style = STYLES[index % len(STYLES)] if len(runs) > 1 else "-"
                axes.plot(curve.iterations, curve.values, style, color=color, marker="." if few else "", label=label)
        axes.legend(fontsize="small")
    return figure


def page(runs: Sequence[Run], svg: str) -> str:
    """One HTML file that needs nothing else: the picture, and a table of where every curve ended."""
    rows = "".join(
        f"<tr><td>{escape(run.name)}</td><td>{escape(name)}</td><td>{curve.iterations[-1]:,}</td>"
        f"<td>{curve.values[-1]:g}</td><td>{min(curve.values):g}</td><td>{max(curve.values):g}</td></tr>\n"
        for run in runs
        for name, curve in run.curves.items()
    )
    title = escape(", ".join(run.name for run in runs))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em }}
svg {{ max-width: 100%; height: auto }} table {{ border-collapse: collapse }}
td, th {{ padding: 0.2em 1em; text-align: right; border-bottom: 1px solid #ddd }}
td:nth-child(-n+2), th:nth-child(-n+2) {{ text-align: left }}
</style></head><body><h1>{title}</h1>
{svg[svg.index("<svg") :]}
<table><tr><th>run</th><th>curve</th><th>iteration</th><th>last</th><th>least</th><th>most</th></tr>
{rows}</table></body></html>
"""


def kind_of(path: Path) -> str:
    """What `draw` makes for a file of this name. Raises ForceregError for an ending that it can't."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise ForceregError(f"{path}: expected a name that ends in {', '.join(f'.{one}' for one in KINDS)}")
    return kind
