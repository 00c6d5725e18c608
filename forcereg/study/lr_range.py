"""The learning rate range test: iterations at rates that grow from one to the next, and where the loss falls and flees.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), 3.3; the rates grow by a factor, the
loss is smoothed and the test ends where that is FLEES times its least, as in fastai (arXiv:2002.04688).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.report.lr_find import picture
from forcereg.report.plot import picture_kind
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile
from forcereg.solver.loop import Solver
from forcereg.solver.trouble import NotFinite
from forcereg.system.arguments import checked
from forcereg.system.events import Event, Tell
from forcereg.system.files import write_bytes
from forcereg.system.paths import StrPath

SMOOTHING = 0.9
"""What the smoothed loss keeps of itself from one iteration to the next."""
FLEES = 4.0
"""The test ends at a smoothed loss of so many times the least one."""
WARM = 0.1
"""Share of the iterations whose slope isn't looked at: the smoothed loss is of few yet."""
FALL = 0.05
"""A loss that falls by less, of what it was, hasn't fallen."""
PLAIN = (
    *("test_iter", "test_interval", "test_net", "test_net_param", "test_state", "snapshot", "snapshot_prefix"),
    *("display", "average_loss", "warmup_iter", "warmup_start_lr", "ema_decay"),
    *("force_ramp", "force_release", "force_until"),
)
"""Solver fields that the test leaves out: it scores, shows and saves nothing, at a force that is whole."""


@dataclass(frozen=True)
class LrCurve:
    """The loss of each iteration of a range test at its rate, in order.

    `losses`: as they came, the last may be infinite; `smoothed`: their mean with weights that fall by SMOOTHING from
    one to the one before. `ended`: why the test ended early, else "". `steepest`: the rate at which the smoothed loss
    falls fastest, by the logarithm of the rate; `tenth`: a tenth of the rate with the least smoothed loss; both None
    where it doesn't fall. `suggestion`: the lower of them.

    >>> found = forcereg.lr_find("solver.prototxt", iterations=30, seed=1)
    >>> round(found.rates[0], 9), found.report["suggestion"] == found.suggestion
    (1e-06, True)
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    ended: str = ""

    @property
    def smoothed(self) -> tuple[float, ...]:
        """See the class."""
        return tuple(smoothed(self.losses))

    @property
    def least(self) -> int | None:
        """The iteration with the least smoothed loss, None if that doesn't fall."""
        curve = self.smoothed
        finite = [value for value in curve if math.isfinite(value)]
        if not finite or finite[0] - min(finite) <= FALL * abs(finite[0]):  # 0 and 0 is no fall
            return None
        return curve.index(min(finite))

    @property
    def steepest(self) -> float | None:
        """See the class."""
        return None if self.least is None else self.rates[steepest(self.rates, self.smoothed[: self.least + 1])]

    @property
    def tenth(self) -> float | None:
        """See the class."""
        return None if self.least is None else self.rates[self.least] / 10

    @property
    def suggestion(self) -> float | None:
        """See the class."""
        return min((rate for rate in (self.steepest, self.tenth) if rate is not None), default=None)

    @property
    def report(self) -> dict[str, Any]:
        """Everything as plain data; a loss that isn't finite is None."""
        curves = {"rates": self.rates, "losses": self.losses, "smoothed": self.smoothed}
        found = {"suggestion": self.suggestion, "steepest": self.steepest, "tenth": self.tenth, "ended": self.ended}
        return {**found, **{name: [plain(value) for value in curve] for name, curve in curves.items()}}

    def lines(self) -> list[str]:
        """What to tell of it."""
        curve, count = self.smoothed, len(self.rates)
        said = [self.ended or f"{count:,} iterations, to rate {self.rates[-1]:.3g}, without the loss diverging"]
        if self.least is None or self.suggestion is None:
            why = "the loss never falls: give other rates (--min-lr, --max-lr), or more iterations"
            return [*said, why]
        fall = f"loss, smoothed: {curve[0]:.4g} at first, {curve[self.least]:.4g} at rate {self.rates[self.least]:.3g}"
        tenth = f"a tenth of the rate with the least loss: {self.tenth:.3g}"
        return [
            *said,
            fall,
            f"the loss falls fastest at rate {self.steepest:.3g}; {tenth}",
            f"suggestion, the lower of them: base_lr: {self.suggestion:.2g}",
        ]

    @checked
    def write(self, path: StrPath) -> None:
        """Writes the curve as a picture, by the ending of its name: .png, .svg or .pdf.

        Raises UsageError for another ending, ForceregError without matplotlib and if the system refuses.
        """
        kind, marks = picture_kind(path), {"steepest": self.steepest, "a tenth of the least": self.tenth}
        shown = {name: rate for name, rate in marks.items() if rate is not None}
        write_bytes(Path(path), picture(self.rates, self.losses, self.smoothed, shown, kind))


def plain(value: float) -> float | None:
    """A number as JSON has them."""
    return value if math.isfinite(value) else None


def smoothed(losses: Iterable[float]) -> list[float]:
    """Means of all losses so far, weights falling by SMOOTHING towards the first."""
    mean, found = 0.0, list[float]()
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**count))
    return found


def steepest(rates: Sequence[float], curve: Sequence[float]) -> int:
    """Where the curve falls fastest by the logarithm of the rate, behind its first iterations."""
    first = min(int(WARM * len(curve)), len(curve) - 2)
    slopes = np.gradient(np.array(curve), np.log(rates[: len(curve)]))
    return first + int(np.argmin(slopes[first:]))


def ranged(file: SolverFile, low: float, high: float, iterations: int) -> SolverFile:
    """The solver with rates from `low` to `high`, each the same factor above the one before, and nothing beside."""
    factor = (high / low) ** (1 / (iterations - 1))
    rates = ("lr_policy=exp", f"base_lr={low!r}", f"gamma={factor!r}", f"max_iter={iterations}")
    return with_settings(file, [*(f"{field}=" for field in PLAIN), "snapshot_after_train=false", *rates])


def range_test(
    file: SolverFile, weights: Sequence[str], low: float, high: float, iterations: int, tell: Tell, **options: Any
) -> LrCurve:
    """Trains from the models `weights`, or else as the solver says, and follows the loss.

    `options` are `Solver`'s. Raises ForceregError as that does.
    """

    def heard(event: Event) -> None:
        if event.kind == "warning":
            tell.warn(event.text)

    solver = Solver(ranged(file, low, high, iterations), observers=[heard], **options)
    for path in weights:
        solver.load_weights(path)
    rates, losses, ended = list[float](), list[float](), ""
    step = tell.steps("iteration", iterations)
    while len(rates) < iterations and not ended:
        rates.append(solver.lr)
        losses.append(_loss(solver))
        curve = smoothed(losses)
        if not math.isfinite(curve[-1]) or curve[-1] > FLEES * min(curve) > 0:
            ended = f"the loss diverges at rate {rates[-1]:.3g}, iteration {len(rates):,} of {iterations:,}"
        step("")
    return LrCurve(tuple(rates), tuple(losses), ended)


def _loss(solver: Solver) -> float:
    """Of the next iteration; infinite where it is none."""
    try:
        loss = float(solver.step(1))
    except NotFinite:
        return math.inf
    return loss if math.isfinite(loss) else math.inf
