"""forcereg.finetune: a decomposed net trained further, by the solver that the original was trained with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forcereg.errors import UsageError
from forcereg.solver.hooks import Callback
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath
from forcereg.workflows.train import Training

if TYPE_CHECKING:
    from forcereg.schema.text import SolverFile
    from forcereg.solver.loop import Solver
    from forcereg.system.events import Observer

ENDING = "_finetuned"


@checked
def finetune(
    solver: Any,
    *,
    model: StrPath,
    test_model: StrPath | Sequence[StrPath] | None = None,
    keep_force: bool = False,
    weights: StrPath | Sequence[StrPath] | None = None,
    snapshot: StrPath | None = None,
    resume: bool = False,
    masks: str | None = None,
    device: str | Sequence[str] | None = None,
    global_batch: bool = False,
    level: int | None = None,
    stage: str | Sequence[str] = (),
    set: Mapping[str, Any] | Sequence[str] = (),
    max_iter: int | None = None,
    seed: int | None = None,
    warmup: int | None = None,
    ema: float | None = None,
    rank_clipping: float | None = None,
    clip_until: int | None = None,
    teacher: StrPath | Any | None = None,
    teacher_model: StrPath | None = None,
    temperature: float = 4.0,
    teacher_weight: float = 0.5,
    keep: int | None = None,
    keep_best: str | None = None,
    patience: int | None = None,
    stop_when: str | None = None,
    on_nan: str = "stop",
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    amp: str | None = None,
    deterministic: bool = False,
    tf32: bool = False,
    cuda_graph: bool = True,
    find_batch: bool = False,
    gradients: str = "dense",
    clip_sigma: float = 2.5,
    dense_layers: str | Sequence[str] = (),
    min_size: int = 1,
    powersgd_rank: int = 1,
    powersgd_start: int = 1000,
    bandwidth: float | None = None,
    measure_force: bool = False,
    sigint_effect: str | None = None,
    sighup_effect: str | None = None,
    callback: str | Callback | Sequence[str | Callback] = (),
    observer: Observer | None = None,
) -> Solver:
    """Trains a decomposed net by the original's solver, as `forcereg finetune` does.

    `model`: the net that takes the place of the solver's, as decompose wrote it; `weights`: the model that it wrote
    beside it, or `snapshot` to go on. `test_model`: in place of test nets that are files of their own. All else of the
    solver holds, but for the force on the parts of decomposed layers, unless `keep_force`: it would lower their ranks
    further. The cut net may learn from the whole one as well, its `teacher`. Snapshots go to the solver's
    snapshot_prefix with _finetuned behind, unless `set` has one. All other keywords, what is returned and raised: as
    `forcereg.train`; also UsageError without `weights` or `snapshot`, and ForceregError for weights that lack a part of
    a decomposed layer.

    >>> low = "net_iter_20_lowrank"
    >>> solver = forcereg.finetune("solver.prototxt", model=f"{low}.prototxt", weights=f"{low}.caffemodel.h5")
    >>> solver.iter, solver.last_snapshot.name
    (20, 'net_finetuned_iter_20.caffemodel.h5')
    """
    # before any other name is bound: the fields are the keywords
    return Finetuning(**locals()).run()


@dataclass(frozen=True, kw_only=True)
class Finetuning(Training):
    """A training of another net than the solver's."""

    model: StrPath
    test_model: StrPath | Sequence[StrPath] | None
    keep_force: bool
    notes: list[str] = field(default_factory=list)
    """What `arranged` came to, told once the solver is made."""

    def check(self) -> None:
        super().check()
        if not (self.weights or self.snapshot):
            raise UsageError("weights is missing: the model that decompose wrote beside the net; or snapshot to go on")

    def arranged(self, file: SolverFile) -> SolverFile:
        from forcereg.schema.settings import settings_of
        from forcereg.solver.replaced import spared, with_net

        # the original's snapshots stay, unless the caller says where these go
        own_prefix = any(one.partition("=")[0].strip() == "snapshot_prefix" for one in settings_of(self.set))
        made = with_net(file, self.model, self.test_model, None if own_prefix else ENDING)
        if self.keep_force:
            return made
        made, text = spared(made)
        self.notes.extend([text] if text else [])
        return made

    def remark(self, solver: Solver) -> None:
        for text in self.notes:
            solver.emit("note", text=text)

    def judge(self, solver: Solver, fresh: Collection[str]) -> None:
        from forcereg.solver.chains import check_chains

        check_chains(solver.net, fresh)
