"""Pictures of curves: one panel each for losses, scores, learning rate and coordination, one colour a run."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, UsageError, printable
from forcereg.report.page import Grid, Part, Picture, Section, page
from forcereg.report.points import Curve, Run
from forcereg.system.paths import StrPath

SPARSITY = "sparsity"
PANELS = ("loss", "score", "learning rate", "rank", "cosine", "force ratio", SPARSITY)
KINDS = ("png", "svg", "pdf", "html")
CSV = "csv"
PICTURES = ("png", "svg", "pdf")
"""What matplotlib draws."""
FILES = (CSV, *PICTURES)
"""Numbers, or a picture of them."""
STYLES = ("-", "--", ":", "-.")
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
"""Ten that colour-blind people tell apart too (Petroff, arXiv:2107.02270)."""
INSIDE, LEGEND_ROWS, LEGEND = 6, 20, 60
"""Entries of a legend that has room among the curves, and rows and entries of one beside them."""
RIGHT = 1.12
"""Where a legend stands beside an axis at the right, with its numbers."""


Range = tuple[float | None, float | None]
"""Where an axis begins and ends, None for as the curves do."""


@dataclass(frozen=True)
class Look:
    """What a picture has beside its curves: levels, name -> value, as horizontal lines, and its axes' ranges.

    With `y` or `levels` there may be one panel only.
    """

    levels: Mapping[str, float] = field(default_factory=dict)
    x: Range = (None, None)
    y: Range = (None, None)


def panel_of(curve: str) -> str:
    """The panel that a curve belongs in, by its name."""
    if curve == "lr":
        return "learning rate"
    endings = (("rank", " rank"), ("cosine", " cosine"), ("force ratio", " ratio"), (SPARSITY, " sparsity"))
    for panel, ending in endings:
        if curve.endswith(ending) and not curve.startswith(("test ", "train ")):
            return panel
    return "loss" if "loss" in curve.lower() else "score"


def chosen(run: Run) -> dict[str, list[str]]:
    """Panel -> names of the run's curves in it. The training net's outputs come only where nothing else would.

    So do kinds of sparsity of which a layer never has any.
    """
    panels: dict[str, list[str]] = {}
    dense = [name for name, curve in run.curves.items() if panel_of(name) == SPARSITY and not any(curve.values)]
    if len(dense) == sum(panel_of(name) == SPARSITY for name in run.curves):
        dense = []
    for curve in (name for name in run.curves if name not in dense):
        if not curve.startswith("train output "):
            panels.setdefault(panel_of(curve), []).append(curve)
    for curve in run.curves:
        if curve.startswith("train output ") and panel_of(curve) not in panels:
            panels.setdefault(panel_of(curve), []).append(curve)
    return panels


def by_panel(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Panel -> the runs with its curves alone, to be drawn by themselves where a page is narrow."""
    found: dict[str, list[Run]] = {panel: [] for panel in PANELS}
    for run in runs:
        for panel, names in chosen(run).items():
            found[panel].append(replace(run, curves={name: run.curves[name] for name in names}))
    return {panel: own for panel, own in found.items() if own}


def draw(runs: Sequence[Run], kind: str, look: Look | None = None) -> bytes:
    """The picture of one or several runs in one of `KINDS`. Raises ForceregError without matplotlib.

    UsageError for a look that doesn't fit its panels.
    """
    picture = rendered(figure(runs, look), "svg" if kind == "html" else kind)
    if kind != "html":
        return picture
    parts: list[Part] = [Picture(picture, "svg", "curves"), ends(runs)]
    return page(", ".join(run.name for run in runs), [Section("Curves", parts)]).encode()


def rendered(figure: Any, kind: str) -> bytes:
    """A Figure as png, svg or pdf; what its font lacks comes as boxes."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")
        figure.savefig(out, format=kind, dpi=120)
    return out.getvalue()


def figure_type() -> Any:
    """matplotlib's Figure. Raises ForceregError without matplotlib."""
    try:
        # not pyplot, which keeps every figure and looks for a display
        from matplotlib.figure import Figure
    except ImportError:
        raise ForceregError('plots need matplotlib; install it with pip install "forcereg[plot]"') from None
    return Figure


def plain(label: str) -> str:
    """`label` so that matplotlib shows it as it is: no mathematics, in the legend though it begins with `_`, short."""
    label = printable(label)
    label = label if len(label) <= 80 else f"{label[:39]}...{label[-38:]}"
    return (f" {label}" if label.startswith("_") else label).replace("$", r"\$")


def figure(runs: Sequence[Run], look: Look | None = None) -> Any:
    """The picture as matplotlib's Figure. Raises as `draw`."""
    look = look or Look()
    shown = [chosen(run) for run in runs]
    panels = {panel: [(run, names.get(panel, [])) for run, names in zip(runs, shown, strict=True)] for panel in PANELS}
    panels = {panel: found for panel, found in panels.items() if any(names for _, names in found)}
    if len(panels) > 1 and (look.levels or look.y != (None, None)):
        raise UsageError(f"--line and --y-range are for one panel, here are {', '.join(panels)}; choose by --only")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    entries = min(LEGEND, max(sum(len(names) for _, names in found) for found in panels.values()))
    wide = 6.4 + (2.6 * -(-entries // LEGEND_ROWS) if entries > INSIDE else 0)
    made = figure_type()(figsize=(wide * columns, 4 * rows), layout="constrained")
    for place, (panel, found) in enumerate(panels.items(), 1):
        axes = made.add_subplot(rows, columns, place, title=panel, xlabel="iteration")
        _panel(axes, found)
        beside = False
        if panel == SPARSITY:
            axes.set_ylabel("%")
            beside = _scores_beside(axes, panels.get("score", []))
        for name, level in look.levels.items():
            axes.axhline(level, color="0.35", linestyle=(0, (1, 1)), linewidth=1.3, label=plain(name))
        axes.set(xlim=look.x, ylim=look.y)
        legend(axes, RIGHT if beside else 1.01)
    return made


def _panel(axes: Any, found: Sequence[tuple[Run, Sequence[str]]]) -> None:
    """Draws each run's curves. With one run colours tell curves apart, with several the runs, and styles the curves."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(alpha=0.3)
    every = dict.fromkeys(name for _, names in found for name in names)
    # what all curves are stands once
    alone = len(every) == 1
    if alone and len(found) > 1 and "lr" not in every:
        axes.set_title(plain(next(iter(every))))
    order = {name: place for place, name in enumerate(every)}
    for number, (run, names) in enumerate(found):
        for name in names:
            curve = run.curves[name]
            said = run.name if alone else f"{run.name}: {name}"
            label = plain((said if len(found) > 1 else name) + gone(curve))
            first, second = (number, order[name]) if len(found) > 1 else (order[name], 0)
            # ten colours, then the next style
            style, color = STYLES[(second + first // 10) % len(STYLES)], COLOURS[first % 10]
            # a single point has no line that one could see
            marker = "." if len(curve.values) < 30 else ""
            axes.plot(curve.iterations, curve.values, style, color=color, marker=marker, label=label)


def _scores_beside(axes: Any, found: Sequence[tuple[Run, Sequence[str]]]) -> bool:
    """Draws scores, if any, on an axis of their own at the right: what sparsity costs, in the same picture."""
    curves = [(run, name) for run, names in found for name in names]
    if not curves:
        return False
    right = axes.twinx()
    for number, (run, name) in enumerate(curves):
        look = {"color": "0.25", "linestyle": STYLES[1 + number % (len(STYLES) - 1)], "linewidth": 1.3}
        right.plot(run.curves[name].iterations, run.curves[name].values, **look)
        label = f"{run.name}: {name}" if len(found) > 1 else name
        axes.plot([], [], label=plain(f"{label} (right)"), **look)
    return True


def legend(axes: Any, at: float = 1.01) -> None:
    """What each curve is: among them, or beside them where many are; `at`: where that is, in widths of the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > LEGEND:
        labels[LEGEND - 1 :] = [f"and {len(labels) - LEGEND + 1:,} more"]
        handles[LEGEND - 1 :] = axes.plot([], [], " ")
    if len(labels) > INSIDE:
        beside = {"loc": "upper left", "bbox_to_anchor": (at, 1), "borderaxespad": 0}
        axes.legend(handles, labels, fontsize="x-small", ncols=-(-len(labels) // LEGEND_ROWS), **beside)
    else:
        axes.legend(handles, labels, fontsize="small")


def gone(curve: Curve) -> str:
    """' (nan from 300)' for a curve that leaves the numbers and doesn't come back, which a picture can't show."""
    finite = [math.isfinite(value) for value in curve.values]
    if finite[-1]:
        return ""
    start = max((place for place, good in enumerate(finite) if good), default=-1) + 1
    return f" ({curve.values[start]:g} from {curve.iterations[start]})"


def ends(runs: Sequence[Run], title: str = "") -> Grid:
    """Where every curve ended, and its bounds."""
    rows = [
        [run.name, name, f"{curve.iterations[-1]:,}", f"{curve.values[-1]:g}", _bound(min, curve), _bound(max, curve)]
        for run in runs
        for name, curve in run.curves.items()
    ]
    return Grid(["run", "curve", "iteration", "last", "least", "most"], rows, frozenset(range(2, 6)), title)


def _bound(bound: Callable[..., float], curve: Curve) -> str:
    """The least or the most of a curve's numbers; a nan has no place among them."""
    return f"{bound((value for value in curve.values if not math.isnan(value)), default=math.nan):g}"


def kind_of(path: Path) -> str:
    """`CSV`, or what `draw` makes for a file of this name. Raises ForceregError for another ending."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in (*KINDS, CSV):
        raise ForceregError(f"{path}: expected a name that ends in {', '.join(f'.{one}' for one in (*KINDS, CSV))}")
    return kind


def picture_kind(out: StrPath, kinds: Sequence[str] = PICTURES) -> str:
    """What is written to a file of this name. Raises UsageError for an ending that none of `kinds` has."""
    kind = Path(out).suffix.removeprefix(".").lower()
    if kind not in kinds:
        raise UsageError(f"--out is '{out}'; expected a name that ends in {', '.join(f'.{one}' for one in kinds)}")
    return kind
