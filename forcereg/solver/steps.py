"""What an iteration does on the device: passes, loss window and update; by CUDA graphs where that is possible."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from forcereg.layers import Layer
from forcereg.net.batching import gathered
from forcereg.net.module import Net
from forcereg.net.scoring import Tally
from forcereg.schema.spec import LayerSpec
from forcereg.solver import debug
from forcereg.solver.average import Average
from forcereg.solver.diagnostics import force_norms
from forcereg.solver.graph import Batches, Graphed, obstacle
from forcereg.solver.passes import Passes
from forcereg.solver.precision import LossScale
from forcereg.solver.regularizers.base import Watch
from forcereg.solver.run import Nets, Run
from forcereg.solver.trouble import NotFinite
from forcereg.solver.updater import Measures, Updater
from forcereg.solver.window import LossWindow
from forcereg.system.capture import Recorder

Fed = Callable[[int], Mapping[str, Tensor] | None]
Outputs = Mapping[str, Tensor]
Work = Callable[[Batches], Any]
UNMEASURED: Mapping[str, Callable[[Tensor], None]] = {}


class Steps:
    """Runs iterations of `nets.train` (`passes`, then `updater`), and the test nets' passes; `losses` get every loss.

    `average`: what averages the weights, None without `ema_decay`.

    With a `recorder` as graphs, but for iterations of which something is shown from within.
    """

    def __init__(
        self, run: Run, nets: Nets, passes: Passes, updater: Updater, losses: LossWindow, recorder: Recorder | None
    ) -> None:
        self.passes, self.updater, self.losses = passes, updater, losses
        # weakly, as what it holds refers to itself: a solver and its memory go with its last holder
        self._me: Steps = weakref.proxy(self)
        self._net, self._iter_size = nets.train, run.param.iter_size
        self._name, self._tell, self._recorder = run.name, run.tell, recorder
        self._mean = run.group.mean
        # as the precision left it: who sets another one later wants to see layers one by one
        self._around = {id(net): net.around for net in nets}
        self._graphed: dict[int, Graphed[Any]] = {}
        self._tallies: dict[int, _Tally] = {}
        decay = run.param.ema_decay
        self.average = Average(nets.train, decay, run.device) if decay else None
        self._grads: list[Tensor | None] | None = None
        self._at = 0  # this iteration
        self._measured: tuple[str, ...] = ()  # the regularizers that are measured in it
        self._norms: dict[str, Tensor] = {}  # what came of that
        self._told = set[str]()
        if recorder is not None and run.group.size > 1:
            self._recorder = None
            self._tell.emit("note", text="CUDA graphs are off: several processes train together")

    @property
    def scale(self) -> LossScale | None:
        """The loss scale, None if the precision needs none."""
        return self.passes.precision.scale

    def run(
        self,
        iteration: int,
        rate: float,
        inputs: Fed,
        tell: Callable[[Outputs], None],
        watched: Callable[[debug.Watch], None] | None = None,
        measures: Mapping[str, Callable[[Tensor], None]] = UNMEASURED,
        between: bool = False,
    ) -> None:
        """An iteration at learning rate `rate`; `tell` is shown the outputs once the loss is in the window.

        That is before the update, or behind it where both are in one graph, which `between` forbids. `watched` sees
        the passes, `measures` of a regularizer the `force_norms` of the update, if there is one. Raises ForceregError
        if a rate is too large, and what the data or the net raises.
        """
        self._at, self._measured, self._norms = iteration, tuple(measures), {}
        self.updater.prepare(iteration)
        if self.average is not None:
            self.average.prepare(iteration)
        work = functools.partial(Steps._work, self._me)
        watches = self.updater.watches(iteration)
        graphed = self.graphed(self._net, work) if watched is None and not watches and not between else None
        if graphed is None:
            with shown(self._net, watches):
                self._run(rate, inputs, tell, watched)
            norms = self._norms
        else:
            outputs, norms = self._replay(graphed, rate, inputs)
            tell(outputs)
        for name, found in norms.items():
            measures[name](found)

    def _run(
        self, rate: float, inputs: Fed, tell: Callable[[Outputs], None], watched: Callable[[debug.Watch], None] | None
    ) -> None:
        """An iteration as it is, one launch after the other."""
        self._grads = None
        self.updater.begin(self._at)
        passes = functools.partial(self.passes.accumulate, inputs, watched)
        # on the recorder's stream even without a graph: autograd's nodes stay with the stream that they first ran on
        loss, outputs = passes() if self._recorder is None else self._recorder.run(passes)
        self.updater.watched(self._at, self._mean)
        self.losses.add(loss)
        tell(outputs)
        with self._explained(rate):
            self.updater.apply(self._at, rate, loss, self._measures())
        self._averaged()

    def _replay(self, graphed: Graphed[Any], rate: float, inputs: Fed) -> tuple[Outputs, dict[str, Tensor]]:
        """An iteration by a graph, whose outputs and norms these are."""
        batches = [gathered(self._net, inputs(sub)) for sub in range(self._iter_size)]
        # on the host, in front of the replay: what counts losses isn't in the graph
        self.losses.advance()
        with self._explained(rate):
            self.updater.set(self._at, rate)  # what differs between iterations is in tensors before the replay
            # what else may change the operations or the tensors of an iteration
            key = self.updater.feeling(self._at), len(self.losses.values), self._measured
            outputs, grads, norms = graphed(batches, key)
        if grads is not self._grads:  # the graph is another than that of the last iteration
            self._grads = grads
            for weight, grad in zip(self.updater.weights, grads, strict=True):
                weight.grad = grad
        return outputs, norms

    def _measures(self) -> Measures:
        def measure(name: str, before: list[Tensor], after: list[Tensor]) -> None:
            self._norms[name] = force_norms(before, after)

        return {name: functools.partial(measure, name) for name in self._measured}

    def _work(self, batches: Batches) -> tuple[Outputs, list[Tensor | None], dict[str, Tensor]]:
        """All of an iteration that a graph holds: outputs, gradients as the update leaves them, norms if measured."""
        self.updater.begin(self._at)
        loss, outputs = self.passes.accumulate(batches.__getitem__)
        self.losses.put(loss)
        own = {_memory(blob) for blob in (*self._net.parameters(), *self._net.buffers())}
        outputs = {name: blob.detach() for name, blob in outputs.items()}
        # an output that is a blob of the net's own would show what the update makes of it, which is launched next
        outputs = {name: blob.clone() if _memory(blob) in own else blob for name, blob in outputs.items()}
        self.updater.step(self._at, loss, self._measures())
        self._averaged()
        return outputs, [weight.grad for weight in self.updater.weights], self._norms

    def _averaged(self) -> None:
        if self.average is not None:
            self.average.step(self.updater.stopped)

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

    def renew(self) -> None:
        """Takes the nets as they are now, with weights of other shapes; the history of the others stays."""
        self.updater.renew()
        if self.average is not None:
            self.average.renew()
        self.passes.renew()
        self.forget()

    def graphed(self, net: Net, work: Work) -> Graphed[Any] | None:
        """What runs `net` as a graph; None if it has to run as it is."""
        # debug_info and the like watch it layer by layer from within
        if self._recorder is None or net.around is not self._around[id(net)]:
            return None
        if id(net) not in self._graphed:
            tell = functools.partial(Steps._say, self._me, net)
            self._graphed[id(net)] = Graphed(work, self._recorder, tell, self._obstacle(net))
        graphed = self._graphed[id(net)]
        return graphed if graphed.active else None

    def _obstacle(self, net: Net) -> str | None:
        if net is self._net and not net.loss_weights:
            return "there is no loss"
        return next(filter(None, map(obstacle, self.passes.nets if net is self._net else [net])), None)

    def _say(self, net: Net, reason: str) -> None:
        text = f"CUDA graphs are off in {'training' if net is self._net else 'tests'}: {reason}"
        if text not in self._told:
            self._told.add(text)
            self._tell.emit("note", text=text)

    @contextlib.contextmanager
    def _explained(self, rate: float) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OverflowError) as error:
            if "overflow" not in str(error):
                raise
            raise NotFinite(
                f"{self._name}: at iteration {self._at} the learning rate {rate:g}, its product with lr_mult, "
                "or weight_decay * decay_mult is larger than a float32; use smaller values"
            ) from error


@contextlib.contextmanager
def shown(net: Net, watches: Sequence[Watch]) -> Iterator[None]:
    """In the block each layer of `net` is shown with its bottoms before it runs."""
    around = net.around

    def run(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        for watch in watches:
            watch(spec, module, bottoms)
        return module(*bottoms) if around is None else around(spec, module, bottoms)

    if watches:
        net.around = run
    try:
        yield
    finally:
        net.around = around


class _Tally(Tally):
    """Runs passes of the first one's number of batches as a graph."""

    def __init__(self, net: Net, steps: Steps) -> None:
        super().__init__(net)
        self._steps = steps
        self._size = 0

    def add(self, batches: Batches) -> list[dict[str, Tensor]]:
        """See Tally; what it returns is valid until the next pass."""
        graphed = self._steps.graphed(self.net, super().add)
        # a last pass of fewer batches runs as it is: recording it would cost more than it saves
        self._size = self._size or len(batches)
        return super().add(batches) if graphed is None or len(batches) != self._size else graphed(batches)


def _memory(blob: Tensor) -> int:
    return blob.untyped_storage().data_ptr()
