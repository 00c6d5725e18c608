"""A search for the solver settings that serve a goal best: each trial is a run of a sweep, settings by Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.lowrank.rules import MaxMacs
from forcereg.solver.loop import Solver
from forcereg.solver.setup import problems, solver_root, tested_nets, trained_net
from forcereg.study.grid import Setting
from forcereg.study.jobs.crew import Crew
from forcereg.study.opened import Opening
from forcereg.study.shared import JOURNAL, PRUNED, Shared, Taken, Tried, heard
from forcereg.study.sweep_cut import cut_by
from forcereg.study.sweep_plan import CLAIM, Plan, Result, runs_of, solver_of
from forcereg.study.sweep_run import Warnings, known_result, run, score_cut
from forcereg.study.tune_goal import Goal
from forcereg.study.tune_space import Space
from forcereg.study.tuning import Ended
from forcereg.system.claims import Lost, held
from forcereg.system.events import Event, Observer, Tell
from forcereg.system.files import make_folder

PAUSE = 0.5
"""Seconds between two looks whether others have come to an end, or were killed."""
Step = Callable[[str], None]


@dataclass(frozen=True)
class Searched:
    """What a search is to do: `plan` of every trial but for its cut, `goal`, `space`, and how many `trials` in all.

    `opening`: which layers are cut, by which method. `prune_after`: the share of the iterations before which no trial
    is pruned. `where`: the study, None for one in the search's folder.
    """

    plan: Plan
    goal: Goal
    space: Space
    opening: Opening
    trials: int
    seed: int
    prune_after: float
    where: str | None = None

    def asked(self, out: Path) -> dict[str, Any]:
        """What tells the study from others, by names for people. Raises ForceregError for a setting that can't be."""
        settings = [Setting(fields, self.seed) for fields in ({}, self.space.without_force, *self.space.probes)]
        # also looks at the settings at the search's ends
        first, *_ = runs_of(self.plan, settings, out)
        cut = self.goal.cut(self.opening, None).key
        return {**asdict(first), **cut, "search": list(self.space.texts), "finetune": self.plan.finetune}

    def study(self, out: Path, asked: dict[str, Any], call: str = "") -> Shared:
        """The study; `call` as of `Shared`."""
        where = str(out / JOURNAL) if self.where is None else self.where
        warm = round(self.prune_after * self.plan.solver.message.max_iter)
        return Shared(where, out, asked, self.space, self.seed, self.goal.of_accuracy, warm, call)


def tune(searched: Searched, out: Path, tell: Tell, crew: Crew | None = None) -> Iterator[Sequence[Tried]]:
    """Runs trials, a folder each below `out`, until the study has as many as asked for.

    Yields all that the study has, before the first and behind each. Waits for those that other processes run in this
    folder: a trial whose process was killed goes on here from its newest snapshot. One whose loss isn't finite, or
    whose settings don't go together, has failed, and no other has.

    By a `crew` its processes run them; else this one, which raises ForceregError for all else that goes wrong. Of a
    crew only the process ends to which that happens, and its trial has failed; raises it if all have ended.
    KeyboardInterrupt once all trials that were told to stop have saved themselves.
    """
    asked = searched.asked(out)
    _check_scored(searched.plan)
    make_folder(out)
    shared = searched.study(out, asked)
    yield (known := shared.tried())
    step = tell.steps("trial", max(0, searched.trials - len(known)))
    if crew is not None:
        yield from _by(crew, searched, out, asked, shared, tell, step)
        return
    for told in _share(searched, out, shared, tell):
        if told:
            step(told)
        before, known = known, shared.tried()
        if known != before:
            yield known


def _by(
    crew: Crew, searched: Searched, out: Path, asked: dict[str, Any], shared: Shared, tell: Tell, step: Step
) -> Iterator[Sequence[Tried]]:
    before = shared.tried()
    ended = {one.number for one in before if one.state != "running"}
    if len(ended) >= searched.trials:
        return
    with crew.at_work(partial(_work, searched, out, asked), out, tell) as team:
        busy = True
        while busy:
            busy = team.busy()
            if (known := shared.tried()) != before:
                before = known
                for one in known:
                    if one.state != "running" and one.number not in ended:
                        ended.add(one.number)
                        step(f"{Setting(one.result.fields, searched.seed).folder}: {_said(one, searched.goal)}")
                yield known
            time.sleep(PAUSE if busy else 0)
        if (left := searched.trials - len(ended) - shared.elsewhere) > 0:
            raise team.nobody_left(left, searched.trials)


def _work(searched: Searched, out: Path, asked: dict[str, Any], tell: Tell, call: str) -> None:
    """What each process of a crew does."""
    with heard(tell.warn):
        for _ in _share(searched, out, searched.study(out, asked, call), tell, call):
            pass


def _share(searched: Searched, out: Path, shared: Shared, tell: Tell, call: str = "") -> Iterator[str]:
    """Runs trials that nobody else runs, and waits for the others; what each came to, "" behind each look at others.

    `call`: one word for all processes of a crew. Of such a one errors are a trial's failure, and raised.
    """
    search = _Search(searched, out, shared, Warnings(tell.warn))
    while True:
        told = ""
        with shared.take(searched.trials) as taken:
            if taken is not None:
                name = Setting(taken.fields, searched.seed).folder
                tell.note(f"trying {name}")
                try:
                    told = f"{name}: {search.run(taken)}"
                except Lost as error:
                    tell.warn(str(error))
                except ForceregError as error:
                    if not call:
                        raise
                    shared.finish(taken, Result(taken.fields, searched.seed, failed=str(error)), None)
                    raise ForceregError(f"{name}: {error}") from error
        yield told
        if taken is None:
            if not shared.waited_for:
                return
            time.sleep(PAUSE)


def _said(one: Tried, goal: Goal) -> str:
    """What a trial came to, in words."""
    if one.value is None:
        return one.result.failed
    return f"{one.value:.2%}{' of the MACs' if goal.of_accuracy else ''}"


def _check_scored(plan: Plan) -> None:
    """Raises ForceregError if the first test net has no accuracy."""
    root = solver_root(plan.solver)
    net = tested_nets(plan.solver, root, trained_net(plan.solver, root).file)[0].spec(root)
    if all(layer.type != "Accuracy" for layer in net.layers):
        raise ForceregError(
            f"{net.filename}: has no Accuracy layer in its test phase, by which trials are judged; add one"
        )


class _Search:
    """The trials that this process runs."""

    def __init__(self, searched: Searched, out: Path, shared: Shared, heard: Warnings) -> None:
        self._of, self._out, self._shared, self._heard = searched, out, shared, heard
        self._untried = not searched.goal.of_accuracy

    def run(self, taken: Taken) -> str:
        """Runs a trial and tells the study what it came to; the same in words."""
        goal = self._of.goal
        result = self._without_force if taken.plain else self._result(taken.fields, self._baseline, taken)
        value = None if result.failed else goal.value(result)
        self._shared.finish(taken, result, value)
        return _said(Tried(taken.number, "", result, value), goal)

    @cached_property
    def _without_force(self) -> Result:
        """The run without force, which is a trial too; who needs it first runs it, the others wait for it."""
        return self._result(self._of.space.without_force, None, None)

    def _baseline(self) -> Result:
        """The same as what others are compared with. Raises ForceregError if it failed."""
        if self._without_force.failed:
            raise ForceregError(
                f"the run without force failed, so there is no accuracy to keep: {self._without_force.failed}"
            )
        return self._without_force

    def _result(self, fields: dict[str, str], baseline: Callable[[], Result] | None, taken: Taken | None) -> Result:
        setting = Setting(fields, self._of.seed)
        folder = self._out / setting.folder
        plan = replace(self._of.plan, cut=self._of.goal.cut(self._of.opening, baseline))
        # each setting may be had, as was looked at, but not all of them together
        if wrong := next(problems(solver_of(plan, setting).message, plan.solver.name), None):
            return Result(fields, self._of.seed, failed=str(wrong))
        (identity,) = runs_of(plan, [setting], self._out)
        make_folder(folder)
        # of two processes that come to the same settings one waits for the other's result
        with held(folder / CLAIM) as own:
            known = known_result(plan, setting, folder)
            if known is not None:
                return known
            watch = None if taken is None else partial(self._watched, plan, taken)
            found = run(plan, setting, identity, folder, self._heard, self._untried, watch, own)
            self._untried = False
            return found

    def _watched(self, plan: Plan, taken: Taken, solver: Solver) -> Observer:
        # where MACs are what is to be little, nets are compared at what the one without force needs
        cut = plan.rule
        if self._of.goal.of_accuracy:
            cut = cut_by(MaxMacs(self._of.goal.value(self._baseline())), self._of.opening)

        def standing(iteration: int) -> str:
            """Why the run ends at a test, if it does."""
            accuracy = score_cut(plan, cut, solver, self._heard) or 0.0
            value = 1 - accuracy if self._of.goal.of_accuracy else accuracy
            hopeless = self._shared.hopeless(taken, iteration, value)
            return (
                f"{PRUNED} {iteration}: cut it has {accuracy:.2%}, below the median of the trials" if hopeless else ""
            )

        return partial(_prune, solver, standing)


def _prune(solver: Solver, standing: Callable[[int], str], event: Event) -> None:
    """An observer: raises Ended at the solver's tests if `standing` says why."""
    # the last test is the trial's end, which is judged by all that it comes to
    if event.kind != "test" or event.net or not 0 < event.iteration < solver.param.max_iter:
        return
    # weights that aren't finite end the training by themselves
    if solver.updater.all_finite() and (why := standing(event.iteration)):
        raise Ended(why)
