"""`forcereg tune`: a search for the force, and other solver settings, that serve a goal best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError, check_share
from forcereg.lowrank.decompose import Named, Picked
from forcereg.report.plot import figure_type
from forcereg.schema.settings import with_settings, written
from forcereg.solver.start import read
from forcereg.study import tune as engine
from forcereg.study.jobs.crew import crew_of
from forcereg.study.opened import Opening
from forcereg.study.shared import Tried, heard
from forcereg.study.sweep_cut import plan_of
from forcereg.study.sweep_plan import Plan
from forcereg.study.tune_goal import Goal, goal_of
from forcereg.study.tune_report import as_csv, best_of, best_solver, picture
from forcereg.study.tune_space import space_of
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes, write_text
from forcereg.system.paths import StrPath
from forcereg.workflows.sweep import ERROR


@dataclass(frozen=True)
class Tuned:
    """All trials of a search, in order; `best`: the one that serves the goal best, None if none is complete.

    `csv`, `picture` and `solver` are the files written; without a best trial there is no solver.

    >>> found = forcereg.tune("solver.prototxt", goal="macs<=0.5", trials=1, max_iter=1, out="one")
    >>> found.best is found.trials[0], found.solver.name
    (True, 'best_solver.prototxt')
    """

    trials: tuple[Tried, ...]
    goal: Goal
    plan: Plan = field(repr=False)
    csv: Path
    picture: Path
    solver: Path

    @property
    def best(self) -> Tried | None:
        """The first of the best trials."""
        return best_of(self.trials, self.goal)


@checked
def tune(
    solver: Any,
    *,
    goal: Any,
    trials: int,
    choose: str | None = None,
    search: Mapping[str, Any] | Sequence[str] = (),
    finetune: int = 0,
    max_iter: int | None = None,
    weights: StrPath | Sequence[StrPath] = (),
    seed: int = 1,
    prune_after: float = 0.3,
    study: StrPath | None = None,
    out: StrPath = "tune",
    method: str = "pca",
    layers: Picked | str | None = None,
    except_layers: Named | str = (),
    fc: bool = False,
    multiple: int = 1,
    device: str | Sequence[str] | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    jobs: int = 1,
    executor: str = "local",
    resource: Mapping[str, Any] | Sequence[str] = (),
    observer: Observer | None = None,
) -> Tuned:
    """Searches the solver settings with which nets are best when cut, by Optuna: each trial is a run of `sweep`.

    `solver`: as for `forcereg.train`. `goal`: "macs<=0.5" or forcereg.MaxMacs(0.5), "params<=0.5" or MaxParams: the
    most accurate net with at most this share of the whole one's cost, behind `finetune` iterations without force at a
    tenth of base_lr; "drop<=0.01" or MaxAccuracyDrop: the net with the fewest MACs whose accuracy, before fine-tuning,
    is at most so much below that of the whole net trained without force. `choose`: how a budget is spread, as
    MaxMacs'. `trials`: how many in all; the first is without force, so that the answer may be that none is better.

    `search`: field -> its values in a list, or "LOW:HIGH" (each decade as likely if LOW is above 0; percentages are
    shares of max_iter, as in {"force_iter": "25%:100%"}), or texts as on the command line. What isn't said:
    force_decay from 1e-5 to 1e-2, force_type Constant or Degradation. `max_iter` and `weights`, models to start from,
    of every trial; `seed` of training and search. Behind the share `prune_after` of the iterations a trial is ended at
    a test at which its net, cut, is below the median of those that are complete; 1: never. `method`, `layers` (names or
    patterns), `except_layers`, `fc`, `multiple`: as for `forcereg.decompose`; `jobs`, `executor`, `resource` and
    several `device`: as for `forcereg.sweep`.

    Writes a folder for each trial into `out`, results.csv behind each, tune.svg and best_solver.prototxt. Run again it
    goes on to `trials` in all; processes that run at once on one `out` share the work, on several machines by
    `study`, a file or a database's URL. One process alone comes to the same trials each time. Each of `.trials` has
    `.state` (complete, pruned, failed, running), `.value` and `.result`, as `sweep`'s. Needs optuna and matplotlib.
    Raises UsageError and ForceregError, also for a study of another solver, net or goal; a trial whose loss isn't
    finite ends no other. KeyboardInterrupt, when a trial that is interrupted has saved itself.

    >>> found = forcereg.tune("solver.prototxt", goal="macs<=0.5", trials=2, max_iter=2, out="search")
    >>> [trial.state for trial in found.trials], found.trials[0].result.fields
    (['complete', 'complete'], {'force_decay': '0'})
    >>> found.best.result.macs_cut <= 0.5 * found.best.result.macs, found.solver.name
    (True, 'best_solver.prototxt')
    """
    aim = goal_of(goal, choose)
    check_share("prune_after", prune_after)
    figure_type()  # without matplotlib it ends here, not after hours
    tell, folder = Tell(observer), Path(out)
    # the observer isn't told how a trial's nets are cut: its steps would be taken for the trials'
    file = read(solver)
    crew, place = crew_of(jobs, executor, resource, device, file)
    opening = Opening(
        method=method, layers=layers, except_layers=except_layers, fc=fc, multiple=multiple, device=place,
        data_budget=data_budget, workers=workers, allow_python_layers=allow_python_layers,
    )  # fmt: skip
    if max_iter is not None:
        file = with_settings(file, [f"max_iter={max_iter}"])
    space = space_of(texts_of(search), file.message.max_iter)
    plan = replace(plan_of(file, opening, aim.cut(opening, None), weights, ERROR, finetune), whole=False)
    place = None if study is None else str(study)
    searched = engine.Searched(plan, aim, space, opening, trials, seed, prune_after, place)
    files = folder / "results.csv", folder / "tune.svg", folder / "best_solver.prototxt"
    found: Sequence[Tried] = ()
    with heard(tell.warn):
        for found in engine.tune(searched, folder, tell, crew):
            # behind every trial: a search may take days, and be looked at meanwhile
            write_text(files[0], as_csv(found))
            if best := best_of(found, aim):
                write_text(files[2], best_solver(best, plan, aim, folder))
    write_bytes(files[1], picture(found, plan, aim, "svg"))
    return Tuned(tuple(found), aim, plan, *files)


def texts_of(asked: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """`field=...` of each field, as --search takes it. Raises UsageError."""
    if isinstance(asked, Mapping):
        return [f"{name}={_values(name, values)}" for name, values in asked.items()]
    texts = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, str) else [asked]
    for one in texts:
        if not isinstance(one, str):
            raise UsageError(
                f'search has {one!r}; expected {{"force_decay": "1e-5:1e-2"}} or ["force_decay=1e-5:1e-2"]'
            )
    return texts


def _values(name: str, values: Any) -> str:
    if isinstance(values, str):
        return values
    if not isinstance(values, Iterable):
        raise UsageError(f'search has {values!r} for {name}; expected values in a list, or "LOW:HIGH"')
    return ",".join(map(written, values))
