"""What a run writes to disk and goes on from: models, solver states, and what these hold beside weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from forcereg import snapshot
from forcereg.snapshot import ModelFile, StateFile
from forcereg.solver import policy
from forcereg.solver.clipping import RankClipping, fitted
from forcereg.solver.distill import TEACHER, change_of
from forcereg.solver.judge import Judge
from forcereg.solver.prefix import writes_binary
from forcereg.solver.pruning import Pruning
from forcereg.solver.rankwatch import RankWatch
from forcereg.solver.rollback import Rollbacks
from forcereg.solver.run import Nets, Run
from forcereg.solver.saved import (
    AVERAGE,
    BEST,
    CLIPPED,
    GRADIENTS,
    MASKS,
    PRUNING,
    ROLLBACKS,
    SCALE,
    WATCH,
    check_extra,
)
from forcereg.solver.saving import write_pair
from forcereg.solver.sparsity import asked, masks
from forcereg.solver.state import extra_state, unpack, unpack_carried
from forcereg.solver.steps import Steps
from forcereg.solver.updater import stored_masks

STORED, REBUILD = "stored", "rebuild"
"""Where masks come from when a run goes on."""


class Part(Protocol):
    """A part of a run that a state holds an entry of."""

    def state_dict(self) -> dict[str, Any]:
        """What it is to go on with; nothing for one that is as at the beginning."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Goes on from that, and begins anew from nothing."""


class Snapshots:
    """Saves and restores what `nets` and `steps` hold, and what `watch` knows.

    `keep`: how many snapshots stay, None for all; `last`: the model that was last written, or gone on from; `best`:
    that of the best net, if this run has written one; `returned`: the state that the run last went back to.
    """

    def __init__(self, run: Run, nets: Nets, steps: Steps, watch: RankWatch, keep: int | None = None) -> None:
        self._run, self._nets, self._steps, self._watch, self._keep = run, nets, steps, watch, keep
        self.last: Path | None = None
        self.last_state: Path | None = None
        self.rollbacks = Rollbacks()
        self.returned: Path | None = None
        self.best: Path | None = None
        self.pruning: Pruning | None = None
        self.judge: Judge | None = None

    def load_weights(self, path: str | Path) -> snapshot.LoadReport:
        """See Solver."""
        model, tell = snapshot.read_model(path), self._run.tell
        found = [snapshot.matched(net.params, snapshot.suited(model, net), net.shared) for net in self._nets]
        report = snapshot.joined(report for _, report in found)
        text = snapshot.remark([(model, report)])
        for copies, _ in found:  # behind the looks at all nets: what doesn't fit leaves each as it was
            snapshot.take_over(copies)
        tell.emit("weights", file=str(path), report=report)
        self.loaded(report.loaded)
        if text and not tell.observers:
            tell.warn(text, 4)
        return report

    def loaded(self, layers: Collection[str]) -> None:
        """Weights of these layers were loaded: what was kept of those before ends, and masks are made."""
        self._steps.updater.forget()
        if self._steps.average is not None:
            self._steps.average.restart()
        self._mask(layers)

    def _mask(self, loaded: Collection[str]) -> None:
        """Makes the masks of layers that got weights anew."""
        net, updater, p = self._nets.train, self._steps.updater, self._run.param
        fresh = masks.made(net, loaded, updater.threshold)
        updater.masks.set(fresh)
        self._steps.forget()  # their tensors are others
        if asked.is_used(net, p):
            told = masks.loaded_layers(net, loaded, updater.threshold or asked.THRESHOLD)
            self._run.tell.emit("masks", layers=[one._asdict() for one in told])

    def extra(self) -> dict[str, Any]:
        """What an exact resume needs beside weights and history: all ranks' data cursors, random state, loss window."""
        extra = self._run.group.pack(extra_state(self._nets.named, self._steps.losses, self._run.device))
        return {**extra, **{name: state for name, part in self._parts.items() if (state := part.state_dict())}}

    @property
    def _parts(self) -> dict[str, Part]:
        """Entry of a state -> the part of this run that it is of."""
        every = (
            (WATCH, self._watch),
            (SCALE, self._steps.scale),
            (PRUNING, self.pruning),
            (ROLLBACKS, self.rollbacks),
            (BEST, self.judge),
        )
        return {name: part for name, part in every if part is not None}

    def put_back(self, extra: Mapping[str, Any]) -> None:
        """Goes back to where `extra` was taken; the loss scale stays."""
        own = self._run.group.unpack(extra)
        unpack(own, self._nets.named, self._steps.losses, self._run.device, self._run.tell.warn)

    def write(
        self,
        iteration: int,
        current_step: int,
        extra: Mapping[str, Any],
        clipping: RankClipping | None = None,
        best: bool = False,
    ) -> Path:
        """Model and state, as of the iteration or the best so far; the model's path. Rank 0 writes, the others wait."""
        run, clipped = self._run, {} if clipping is None else {CLIPPED: clipping.last}
        which = snapshot.BEST if best else None
        extra = {**extra, **self._averaging()}  # no test changes that

        def work() -> Path:
            path = write_pair(run, self._nets.train, self._steps, iteration, current_step, extra, clipped, which)
            # behind the new pair, so that there is always one that is whole
            if self._keep and not best:
                snapshot.prune(run.prefix(), self._keep, iteration, writes_binary(run.param))
            return path

        path = run.group.once(work)
        state = snapshot.state_of(path)
        run.tell.emit("saved", model=str(path), state=str(state), iteration=iteration)
        if best:
            self.best = path
        else:
            self.last, self.last_state = path, state
        return path

    def _averaging(self) -> dict[str, Any]:
        """How ranks average gradients, if not as they are."""
        if (scheme := self._steps.passes.scheme) is None:
            return {}
        ranks = {str(rank): state for rank, state in enumerate(self._run.group.gather(scheme.state_dict())) if state}
        return {GRADIENTS: {"scheme": scheme.name, **({"ranks": ranks} if ranks else {})}}

    def _take_averaging(self, state: StateFile) -> None:
        saved, scheme = (state.extra or {}).get(GRADIENTS), self._steps.passes.scheme
        now = "dense" if scheme is None else scheme.name
        if saved is not None and saved["scheme"] != now:
            self._run.tell.warn(f"{state.path}: its run's gradients were {saved['scheme']}, this one's are {now}")
        elif scheme is not None:
            ranks: dict[str, dict[str, Any]] = (saved or {}).get("ranks", {})
            # a rank that the state doesn't know begins anew, but not at another iteration than the others
            at = next((one["iteration"] for one in ranks.values() if "iteration" in one), state.iteration)
            scheme.load_state_dict(ranks.get(str(self._run.group.rank), {"iteration": at}))

    def to_go_back_to(self) -> Path | None:
        """The state of the last snapshot; if the run has just come from there, that of the one before on disk."""
        last = self.last_state
        if last is None or last != self.returned:
            return last
        binary = writes_binary(self._run.param)

        def before() -> Path:
            at = snapshot.read_state(last).iteration
            older = [n for n in snapshot.pairs(self._run.prefix(), binary) if n < at]
            return snapshot.state_path(self._run.prefix(), older[-1], binary) if older else last

        return self._run.group.once(before)

    def take_over(
        self, state: StateFile, model: ModelFile, clipping: RankClipping | None = None, wanted: str = STORED
    ) -> int:
        """Goes on from a pair that has been read; the current_step of its iteration.

        `wanted`: the masks "stored" in the state, if it has any, or "rebuild" them from the weights. Raises
        ForceregError, with nothing taken over, if it doesn't fit.
        """
        run, train, updater = self._run, self._nets.train, self._steps.updater
        # all looks before the first change: what doesn't fit leaves the run as it was
        check_extra(path := state.path, state.extra, self._nets.named)
        with fitted(clipping, state, model):
            history = updater.matched(state, model)
            history += [] if (average := self._steps.average) is None else average.matched(state)
            weights, report = snapshot.matched(train.params, model, train.shared)
            text = snapshot.remark([(model, report)]) if any(model.layers.values()) else ""
        run.tell.emit("restore", state=str(path), iteration=state.iteration)
        # weights and history in one go, and only now
        updater.go_on(weights + history)
        lacking = f"{model.path}: lacks layers {', '.join(report.fresh)}; they keep their initial weights"
        if text or report.fresh:
            run.tell.warn(text or lacking)
        if not report.fresh and not state.goes_with(model):
            run.tell.warn(f"{model.path}: holds other weights than {path} was saved with; training goes on with these")
        if text := self._go_on_averaging(state):
            run.tell.warn(text)
        if other := change_of(model.attrs.get(TEACHER), self._steps.passes.lesson):
            run.tell.warn(f"{path}: {other}")
        self._steps.forget()  # the loss window's tensor may be another, and with other ranks the weights are
        self.last, self.last_state = model.path, state.path
        self._take_masks(state, report.loaded, wanted)
        self._take_extra(state)
        return policy.catch_up(run.param, state.iteration, state.current_step)

    def _go_on_averaging(self, state: StateFile) -> str:
        """What to warn of, '' for nothing."""
        if self._steps.average is not None:
            return self._steps.average.go_on(state)
        held = AVERAGE in (state.extra or {})
        return f"{state.path}: its averaged weights end here; go on with them by --ema DECAY" if held else ""

    def _take_masks(self, state: StateFile, loaded: Collection[str], wanted: str) -> None:
        stored = MASKS in (state.extra or {})
        if stored and wanted == STORED:
            self._steps.updater.masks.clear()
            self._steps.updater.masks.set(stored_masks(state))
        else:
            self._mask(loaded)

    def _take_extra(self, state: StateFile) -> None:
        tell, steps = self._run.tell, self._steps
        if state.extra is None:
            tell.warn(f"{state.path}: written by Caffe, it holds no data position; the data starts from the beginning")
            unpack_carried({}, self._nets.named, tell.warn)
            steps.losses.clear()
        else:
            self.put_back(state.extra)
        self._take_averaging(state)
        for name, part in self._parts.items():
            part.load_state_dict((state.extra or {}).get(name, {}))
        if self.judge is not None and self.judge.aims.best and self.judge.best.iteration >= 0:
            path = snapshot.model_path(self._run.prefix(), snapshot.BEST, writes_binary(self._run.param))
            self.best = path if path.is_file() else None
