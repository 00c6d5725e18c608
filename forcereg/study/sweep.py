"""A grid of trainings, each cut to low rank and fine-tuned: which setting gives the best net at which cost?

The folder of the runs is what all processes that share them know: what is done, what failed, who runs what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.study.grid import Setting
from forcereg.study.jobs.crew import PAUSE, Crew
from forcereg.study.jobs.job import DEADLY
from forcereg.study.sweep_plan import CLAIM, FAILED, Plan, Result, Run, runs_of
from forcereg.study.sweep_run import Warnings, keep_failure, known_failure, known_result, run
from forcereg.system.claims import Claim, Lost, Watch, claim
from forcereg.system.events import Tell
from forcereg.system.files import make_folder


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep: what they share, their settings, what each is, and the folder that has one for each."""

    plan: Plan
    settings: Sequence[Setting]
    identities: Sequence[Run]
    out: Path

    def folder(self, place: int) -> Path:
        """A run's."""
        return self.out / self.settings[place].folder

    def title(self, place: int) -> str:
        """A run's number and name."""
        return f"{place + 1} of {len(self.settings)}: {self.settings[place].folder}"

    def ended(self, place: int) -> Result | None:
        """What a run came to, also if it failed; None if it hasn't come to its end."""
        asked = self.plan, self.settings[place], self.folder(place)
        return known_result(*asked) or known_failure(*asked)

    def forget_failures(self) -> None:
        """So that runs which failed in earlier calls are tried again, but for those that run now."""
        watch = Watch()
        for place in range(len(self.settings)):
            if not watch.is_held(self.folder(place) / CLAIM):
                (self.folder(place) / FAILED).unlink(missing_ok=True)


def sweep(
    plan: Plan,
    settings: Sequence[Setting],
    out: Path,
    tell: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
    crew: Crew | None = None,
) -> Iterator[Result]:
    """Runs what has not been run yet, one folder each below `out`, and yields every result once it is known.

    `tell` is called with how it goes, `warn` with every warning once; without `warn`, `tell` is with that word before.
    All settings are looked at before the first one runs. A run that was interrupted goes on from its newest snapshot;
    one that came to a loss or weight that isn't finite is told, yielded and tried again next time. What other processes
    run meanwhile is waited for, and taken up if they die.

    By a `crew` its processes run them; else this one, which raises ForceregError for all else that goes wrong, as for a
    full disk. Of a crew only the process ends to which that happens; raises it if all have ended. KeyboardInterrupt
    once all runs that were told to stop have saved themselves.
    """
    warn = warn or (lambda text: tell(f"warning: {text}"))
    grid = Grid(plan, settings, runs_of(plan, settings, out), out)
    grid.forget_failures()
    if crew is not None:
        yield from _by(crew, grid, tell, warn)
        return
    for place, result, own in _share(grid, tell, Warnings(warn)):
        if not own:
            tell(f"{grid.title(place)}: done before")
        elif result.failed:
            tell(f"failed: {result.failed}")
        yield result


def _by(crew: Crew, grid: Grid, tell: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[Result]:
    left = dict.fromkeys(range(len(grid.settings)))
    for place in [*left]:
        if (known := grid.ended(place)) is not None:
            del left[place]
            tell(f"{grid.title(place)}: done before")
            yield known
    if not left:
        return
    telling = Tell(lambda event: (tell if event.kind == "note" else warn)(event.text))
    with crew.at_work(partial(_work, grid), grid.out, telling) as team:
        while left:
            busy = team.busy()  # before the look: whoever has ended since has left what is found
            for place in [*left]:
                if (known := grid.ended(place)) is not None:
                    del left[place]
                    failed = f" failed: {known.failed}" if known.failed else " done"
                    tell(f"{grid.title(place)}:{failed}")
                    yield known
            if left and not busy:
                raise team.nobody_left(len(left), len(grid.settings))
            time.sleep(PAUSE if left else 0)


def _work(grid: Grid, tell: Tell, call: str) -> None:
    """What each process of a crew does."""
    for _ in _share(grid, tell.note, Warnings(tell.warn), call):
        pass


def _share(
    grid: Grid, tell: Callable[[str], None], heard: Warnings, call: str = ""
) -> Iterator[tuple[int, Result, bool]]:
    """Runs what nobody else runs, waits for the rest; place, result, and whether it is of this process.

    `call`: one word for all processes of a crew. Of such a one errors are kept as a run's failure, and raised.
    """
    left, watch = dict.fromkeys(range(len(grid.settings))), Watch()
    doing = _Doing(grid, tell, heard, call)
    while left:
        before = len(left)
        for place in [*left]:
            known, own = grid.ended(place), False
            if known is None:
                make_folder(grid.folder(place))
                held = claim(grid.folder(place) / CLAIM, watch, call)
                if held is None:
                    continue
                try:
                    known, own = doing.run(place, held)
                except Lost as error:
                    heard.once(str(error))
                    continue
                finally:
                    held.release()
            del left[place]
            yield place, known, own
        if len(left) == before:
            time.sleep(PAUSE)


class _Doing:
    """The runs of this process."""

    def __init__(self, grid: Grid, tell: Callable[[str], None], heard: Warnings, call: str) -> None:
        self._grid, self._tell, self._heard, self._call = grid, tell, heard, call
        # a cut that can't be is told by the first net, before hours of training
        self._untried = not grid.plan.rule.scores

    def run(self, place: int, held: Claim) -> tuple[Result, bool]:
        """What a run comes to that this process holds, and whether it was this one that ran it."""
        grid, setting, folder = self._grid, self._grid.settings[place], self._grid.folder(place)
        if (known := grid.ended(place)) is not None:  # since the last look
            return known, False
        if held.deaths >= DEADLY:
            failed = Result(setting.fields, setting.seed, failed=f"{held.deaths} jobs that ran it were killed")
            keep_failure(grid.plan, failed, folder)
            return failed, True
        self._tell(grid.title(place))
        try:
            result = run(grid.plan, setting, grid.identities[place], folder, self._heard, self._untried, held=held)
        except ForceregError as error:
            if self._call and not isinstance(error, Lost):
                keep_failure(grid.plan, Result(setting.fields, setting.seed, failed=str(error)), folder)
                raise ForceregError(f"{setting.folder}: {error}") from error
            raise
        self._untried = False
        return result, True
