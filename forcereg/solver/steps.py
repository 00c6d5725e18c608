"""What an iteration does on the device: passes, loss window and update; by CUDA graphs where that is possible."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from forcereg.net.batching import gathered
from forcereg.net.module import Net
from forcereg.net.scoring import Tally
from forcereg.solver.debug import Watch
from forcereg.solver.diagnostics import force_norms
from forcereg.solver.graph import Batches, Graphed, obstacle
from forcereg.solver.trouble import NotFinite
from forcereg.solver.window import LossWindow
from forcereg.system.capture import Recorder

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver

Fed = Callable[[int], Mapping[str, Tensor] | None]
Outputs = Mapping[str, Tensor]
Work = Callable[[Batches], Any]


class Steps:
    """Runs the iterations of `solver`, and its test nets' passes; `losses` get every loss.

    With a `recorder` as graphs, but for iterations of which something is shown from within.
    """

    def __init__(self, solver: Solver, losses: LossWindow, recorder: Recorder | None) -> None:
        # weakly, as what it holds refers to itself: a solver and its memory go with its last holder
        self._solver: Solver = weakref.proxy(solver)
        self._me: Steps = weakref.proxy(self)
        self._losses, self._recorder = losses, recorder
        self._around = {id(net): net.around for net in (solver.net, *solver.test_nets)}
        self._graphed: dict[int, Graphed[Any]] = {}
        self._tallies: dict[int, _Tally] = {}
        self._grads: list[Tensor | None] | None = None
        self._measuring = False
        self._norms: Tensor | None = None  # of this iteration
        self._told = set[str]()
        if recorder is not None and solver.group.size > 1:
            self._recorder = None
            solver.emit("note", text="CUDA graphs are off: several processes train together")

    def run(
        self,
        rate: float,
        inputs: Fed,
        tell: Callable[[Outputs], None],
        watched: Callable[[Watch], None] | None = None,
        measure: Callable[[Tensor], None] | None = None,
    ) -> None:
        """The solver's iteration at learning rate `rate`; `tell` is shown the outputs once the loss is in the window.

        That is before the update, or behind it where both are in one graph. `watched` sees the passes, `measure` the
        `force_norms` of the update, if there is one. Raises ForceregError if a rate is too large, and what the data or
        the net raises.
        """
        solver = self._solver
        self._norms = None
        self._measuring = measure is not None
        graphed = self.graphed(solver.net, functools.partial(Steps._work, self._me)) if watched is None else None
        if graphed is None:
            self._grads = None
            solver.updater.begin(solver.iter)
            passes = functools.partial(solver.passes.accumulate, inputs, watched)
            loss, outputs = passes() if self._recorder is None else self._recorder.run(passes)
            self._losses.add(loss)
            tell(outputs)
            with self._explained(rate):
                solver.updater.apply(solver.iter, rate, loss, self._measure if self._measuring else None)
            if measure is not None and self._norms is not None:
                measure(self._norms)
            return
        batches = [gathered(solver.net, inputs(sub)) for sub in range(solver.param.iter_size)]
        self._losses.advance()
        with self._explained(rate):
            solver.updater.set(solver.iter, rate)
            key = solver.updater.feels(solver.iter), len(self._losses.values), self._measuring
            outputs, grads, norms = graphed(batches, key)
        if grads is not self._grads:
            self._grads = grads
            for weight, grad in zip(solver.updater.weights, grads, strict=True):
                weight.grad = grad
        tell(outputs)
        if measure is not None and norms is not None:
            measure(norms)

    def _measure(self, before: list[Tensor], after: list[Tensor]) -> None:
        self._norms = force_norms(before, after)

    def _work(self, batches: Batches) -> tuple[Outputs, list[Tensor | None], Tensor | None]:
        """All of an iteration that a graph holds: outputs, gradients as the update leaves them, norms if measured."""
        solver = self._solver
        solver.updater.begin(solver.iter)
        loss, outputs = solver.passes.accumulate(batches.__getitem__)
        self._losses.put(loss)
        own = {_memory(blob) for blob in (*solver.net.parameters(), *solver.net.buffers())}
        outputs = {name: blob.detach() for name, blob in outputs.items()}
        outputs = {name: blob.clone() if _memory(blob) in own else blob for name, blob in outputs.items()}
        solver.updater.step(solver.iter, loss, self._measure if self._measuring else None)
        return outputs, [weight.grad for weight in solver.updater.weights], self._norms

    def tally(self, net: Net) -> Tally | None:
        """What adds up the passes of a test net as graphs; None if there are none."""
        if self._recorder is None:
            return None
        return self._tallies.setdefault(id(net), _Tally(net, self._me))

    def forget(self) -> None:
        """Begins anew, because tensors of the nets, the history or the window are others now."""
        self._grads = None
        for graphed in self._graphed.values():
            graphed.forget()

    def graphed(self, net: Net, work: Work) -> Graphed[Any] | None:
        """What runs `net` as a graph; None if it has to run as it is."""
        if self._recorder is None or net.around is not self._around[id(net)]:
            return None
        if id(net) not in self._graphed:
            tell = functools.partial(Steps._tell, self._me, net)
            self._graphed[id(net)] = Graphed(work, self._recorder, tell, self._obstacle(net))
        graphed = self._graphed[id(net)]
        return graphed if graphed.active else None

    def _obstacle(self, net: Net) -> str | None:
        if net is self._solver.net and not net.loss_weights:
            return "there is no loss"
        return obstacle(net)

    def _tell(self, net: Net, reason: str) -> None:
        text = f"CUDA graphs are off in {'training' if net is self._solver.net else 'tests'}: {reason}"
        if text not in self._told:
            self._told.add(text)
            self._solver.emit("note", text=text)

    @contextlib.contextmanager
    def _explained(self, rate: float) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OverflowError) as error:
            if "overflow" not in str(error):
                raise
            solver = self._solver
            raise NotFinite(
                f"{solver.file.name}: at iteration {solver.iter} the learning rate {rate:g}, its product with lr_mult, "
                "or weight_decay * decay_mult is larger than a float32; use smaller values"
            ) from error


class _Tally(Tally):
    """Runs passes of the first one's number of batches as a graph."""

    def __init__(self, net: Net, steps: Steps) -> None:
        super().__init__(net)
        self._steps = steps
        self._size = 0

    def add(self, batches: Batches) -> list[dict[str, Tensor]]:
        """See Tally; what it returns is valid until the next pass."""
        graphed = self._steps.graphed(self.net, super().add)
        self._size = self._size or len(batches)
        return super().add(batches) if graphed is None or len(batches) != self._size else graphed(batches)


def _memory(blob: Tensor) -> int:
    return blob.untyped_storage().data_ptr()
