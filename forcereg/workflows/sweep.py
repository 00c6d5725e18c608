"""`forcereg sweep`: a grid of trainings, each net cut to low rank and fine-tuned, compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcereg.errors import UsageError
from forcereg.lowrank.decompose import Named, Picked
from forcereg.lowrank.ranks import by_error
from forcereg.lowrank.rule import Rule, check_rule
from forcereg.lowrank.rules import MaxError
from forcereg.report.plot import figure_type
from forcereg.schema.settings import settings_of, with_settings, written
from forcereg.schema.text import SolverFile
from forcereg.solver.start import read
from forcereg.study import sweep as engine
from forcereg.study.evaluate import check_taught
from forcereg.study.grid import Setting, alternatives, grid
from forcereg.study.jobs.crew import crew_of
from forcereg.study.opened import Opening
from forcereg.study.sweep_cut import cut_by, plan_of
from forcereg.study.sweep_plan import Plan, Result
from forcereg.study.sweep_report import as_csv, picture
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes, write_text
from forcereg.system.paths import StrPath

ERROR = 0.05
"""Relative squared error at which ranks are told."""


@dataclass(frozen=True)
class Sweep:
    """What every run of a sweep came to, in order; `plan`: what they share; `csv` and `picture`: the files written.

    >>> table = forcereg.sweep("solver.prototxt", set={"force_decay": [0]}, max_iter=1, out="one")
    >>> len(table.results), table.failed, table.csv.name
    (1, 0, 'results.csv')
    """

    results: tuple[Result, ...]
    plan: Plan = field(repr=False)
    csv: Path
    picture: Path

    @property
    def failed(self) -> int:
        """How many runs came to no result; each says why in its `failed`."""
        return sum(bool(result.failed) for result in self.results)


@checked
def sweep(
    solver: Any,
    *,
    set: Mapping[str, Sequence[Any]] | Sequence[str],
    rule: Rule | None = None,
    error: float = ERROR,
    seeds: int = 1,
    max_iter: int | None = None,
    weights: StrPath | Sequence[StrPath] = (),
    finetune: int = 0,
    teacher: StrPath | None = None,
    out: StrPath = "sweep",
    even_if_dearer: bool = False,
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
) -> Sweep:
    """Trains every combination of solver settings, cuts every net to low rank by one rule, fine-tunes and scores it.

    `solver`: as for `forcereg.train`. `set`: field -> the values to try, or texts as on the command line; `seeds` runs
    of each; `max_iter` and `weights`, models to start from, of every run. `rule`: which ranks; None: those at `error`,
    a bound of 0 to 1 on each layer's relative squared error, at which ranks are told in any case. `finetune`:
    iterations to train each net further, cut and whole, without force, at a tenth of base_lr; `teacher`: a snapshot
    from whose net they learn then as well, as in `forcereg.finetune`. `method`, `layers` (names or patterns),
    `except_layers`, `fc`, `multiple`, `even_if_dearer`: as for `forcereg.decompose`. `jobs`: run so many at a time, in
    processes by `executor`: "local" ones, which divide cores and GPUs (`device` may name several); "slurm" or "ray",
    with `resource` for each, as {"partition": "gpu"}. `observer` is told how it goes, and each warning once.

    Writes a folder for each run into `out`, results.csv behind every run, and sweep.svg (needs matplotlib). What was
    done before isn't done again; calls at once on one `out`, on several machines, share the work. Each of the result's
    `.results` has `.fields`, `.seed`, `.accuracy`, `.accuracy_cut`, `.accuracy_tuned`, ... (shares of 1, None where it
    didn't get), `.macs`, `.macs_cut`, `.ranks` and `.failed`, which isn't empty if a loss wasn't finite; that ends no
    other run. Raises UsageError and ForceregError for all else, of several jobs once all have ended; KeyboardInterrupt,
    when runs that are interrupted have saved themselves.

    >>> grid, rule = {"force_decay": [0, 0.01]}, forcereg.MaxMacs(0.5)
    >>> table = forcereg.sweep("solver.prototxt", set=grid, rule=rule, max_iter=2, out="grid")
    >>> [run.fields for run in table.results], table.failed
    ([{'force_decay': '0'}, {'force_decay': '0.01'}], 0)
    >>> table.results[0].macs_cut <= 0.5 * table.results[0].macs
    True
    """
    if rule is not None:
        check_rule(rule)
    figure_type()  # without matplotlib it ends here, not after hours
    by_error(error)  # its range
    check_taught(teacher, finetune)
    tell, folder = Tell(observer), Path(out)
    texts = settings_to_try(set)
    file = timed_solver(read(solver), texts, max_iter)
    crew, place = crew_of(jobs, executor, resource, device, file)
    opening = Opening(
        method=method, layers=layers, except_layers=except_layers, fc=fc, multiple=multiple, device=place,
        data_budget=data_budget, workers=workers, allow_python_layers=allow_python_layers, tell=tell,
        teacher=teacher,
    )  # fmt: skip
    cut = cut_by(MaxError(error) if rule is None else rule, opening, even_if_dearer)
    plan = plan_of(file, opening, cut, weights, error, finetune)
    files, settings = (folder / "results.csv", folder / "sweep.svg"), grid(texts, seeds)
    known: dict[str, Result] = {}
    results: list[Result] = []
    for result in engine.sweep(plan, settings, folder, tell.note, tell.warn, crew):
        known[Setting(result.fields, result.seed).folder] = result
        results = [known[one.folder] for one in settings if one.folder in known]
        # behind every run: a sweep may take days, and be looked at meanwhile
        write_text(files[0], as_csv(results))
    write_bytes(files[1], picture(results, plan, "svg"))
    return Sweep(tuple(results), plan, *files)


def settings_to_try(asked: Mapping[str, Sequence[Any]] | Sequence[str]) -> list[str]:
    """`field=a,b` of each field, as --set takes it. Raises UsageError."""
    if not isinstance(asked, Mapping):
        return settings_of(asked)
    for name, values in asked.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise UsageError(f"set has {values!r} for {name}; expected the values to try, as in [0.01, 0.1]")
    return [f"{name}={','.join(map(written, values))}" for name, values in asked.items()]


def timed_solver(file: SolverFile, texts: Sequence[str], max_iter: int | None) -> SolverFile:
    """The file, with the length asked for. Raises UsageError if that is among the values to try."""
    if max_iter is None:
        return file
    if any(alternatives(text)[0] == "max_iter" for text in texts):
        raise UsageError("--max-iter and --set max_iter are both given; use one")
    return with_settings(file, [f"max_iter={max_iter}"])
