"""forcereg's Solver, whose iterations run through the blobs of a pycaffe net, layer by layer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.layers import Layer
from forcereg.net.module import Net as TorchNet
from forcereg.net.scoring import Score
from forcereg.pycaffe.chain import Chain, Weights
from forcereg.pycaffe.net import Net
from forcereg.pycaffe.stages import FeedStage
from forcereg.schema.spec import LayerSpec
from forcereg.schema.text import SolverFile
from forcereg.solver import policy
from forcereg.solver.debug import Watch
from forcereg.solver.loop import Solver
from forcereg.solver.passes import Passes
from forcereg.solver.run import Run
from forcereg.system.events import Observer

Hooks = list[tuple[Callable[[], Any], Callable[[], Any]]]
Outputs = dict[str, Tensor]


class BlobPasses(Passes):
    """Passes through a chain, whose blobs then hold what they came to; data comes from the chain's own layers."""

    def __init__(self, run: Run, chain: Chain, before: Passes, hooks: Hooks) -> None:
        super().__init__(chain.net, run.param.iter_size, before.precision, run.group)
        self._chain, self._hooks, self._subs = chain, hooks, run.param.iter_size

    @property
    def forward_loss(self) -> Callable[[Mapping[str, Tensor] | None], tuple[Tensor, Outputs]]:
        """See Passes; what it is given the chain's blobs hold already."""
        return lambda _: self._forward()

    def _forward(self) -> tuple[Tensor, Outputs]:
        chain, net = self._chain, self._chain.net
        chain.forward(0, len(chain.stages) - 1)
        blobs = {name: chain.blob(name).values.read() for name in (*net.loss_weights, *net.spec.outputs)}
        # copies: the next pass may write where a script holds an array
        return net.total_loss(blobs).clone(), {name: blobs[name].clone() for name in net.spec.outputs}

    def accumulate(
        self, inputs: Callable[[int], Mapping[str, Tensor] | None], watched: Callable[[Watch], None] | None = None
    ) -> tuple[Tensor, Outputs]:
        """See Passes; `inputs` are the chain's own."""
        chain = self._chain
        # behind the last update, or what a script has loaded
        chain.weights_changed()
        chain.clear_grads()
        for begin, _ in self._hooks:
            begin()
        total = torch.zeros((), device=chain.device)
        outputs: Outputs = {}
        for _ in range(self._subs):
            with contextlib.ExitStack() as stack:
                watch = None if watched is None else stack.enter_context(Watch(chain.net))
                loss, outputs = self._forward()
                total = total + loss
                chain.backward(len(chain.stages) - 1, 0)
            if watched is not None and watch is not None:
                self.hand_over()
                watched(watch)
        for _, ready in self._hooks:
            ready()
        self.hand_over()
        return total / self._subs, outputs

    def hand_over(self) -> None:
        """Gives the weights, as arrays have them, the gradients that the chain has for them."""
        self._chain.read_weights()
        for one in self._chain.net.learnable:
            grads = self._chain.grad_of(one.blob)
            one.blob.grad = None if grads.untouched else grads.read()


class Training(Solver):
    """A Solver with pycaffe nets around its own: `face`, `test_faces`. `hooks`: see caffe's add_callback."""

    def __init__(self, file: SolverFile, device: str, observers: Sequence[Observer]) -> None:
        super().__init__(file, device=device, observers=observers, allow_python_layers=True, cuda_graph=False)
        weights: Weights = {}
        self.face = Net._of(self.net, weights)
        self.test_faces = [Net._of(net, weights) for net in self.test_nets]
        for face in self.faces:
            face._chain.follows_mode = False
            face._loaded = self._took
        self.hooks: Hooks = []
        self._blob_passes = BlobPasses(self._run, self.face._chain, self.passes, self.hooks)
        self.steps.passes = self._blob_passes

    def _fed(self, net: TorchNet, sub: int) -> Outputs | None:
        """What stands in the blobs of a net's Input layers, and in a test of its data layers, too; None for nothing."""
        face = next(face for face in self.faces if face._chain.net is net)
        names = face.inputs if net is self.net else net.inputs
        # by the blobs: what a script has written over a constant stays
        for stage in face._chain.stages if net is not self.net else ():
            if isinstance(stage, FeedStage):
                stage.forward(None)
        return {name: face._chain.blob(name).values.read() for name in names} or None

    def test(self, index: int = 0) -> Score:
        """See Solver; the blobs of the test net show its last batch."""
        net, chain = self.test_nets[index], self.test_faces[index]._chain

        def run(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
            tops = module(*bottoms)
            chain.take(spec, bottoms, (tops,) if isinstance(tops, Tensor) else tops)
            return tops

        net.around = run
        try:
            return super().test(index)
        finally:
            net.around = None

    @property
    def faces(self) -> list[Net]:
        """The pycaffe nets, the trained one first."""
        return [self.face, *self.test_faces]

    def run(self, iterations: int) -> None:
        """So many iterations, from arrays as scripts have left them to arrays that are up to date."""
        with self._in_step(iterations > 0):
            self.step(iterations, self._feed())

    def finish(self) -> None:
        """To the end: max_iter, snapshot, test."""
        with self._in_step(self.iter < self.param.max_iter):
            self.solve(self._feed())

    def save(self) -> None:
        """A snapshot."""
        self.face._chain.read_weights()
        self.snapshot()

    def go_back(self, state: str) -> None:
        """Goes on from a solver state."""
        with self._in_step(False):
            self.restore(state)

    @torch.no_grad()
    def update_once(self) -> None:
        """An update by the gradients that the net's blobs have."""
        with self._in_step(False):
            after = policy.advance(self.param, self.iter, self.current_step)
            self.updater.prepare(self.iter)
            self.updater.begin(self.iter)
            self._blob_passes.hand_over()
            rate = policy.rate(self.param, self.iter, after)
            self.updater.apply(self.iter, rate, torch.zeros((), device=self.device))
            self.current_step = after
            self.iter += 1
            self.check_finite()

    def _took(self, layers: Collection[str]) -> None:
        """A net of these got weights of a file by its `copy_from`."""
        with self._in_step(False):
            self.loaded(layers)

    def _feed(self) -> Callable[[int, int], Outputs] | None:
        # of the trained net; tests ask `_fed`
        given = any(face.inputs for face in self.faces)
        return (lambda iteration, sub: self._fed(self.net, sub) or {}) if given else None

    @contextlib.contextmanager
    def _in_step(self, updates: bool) -> Iterator[None]:
        """Weights as arrays have them go in, arrays follow behind; with `updates` gradients are what was subtracted."""
        for face in self.faces:
            face._chain.read_weights()
        try:
            yield
        finally:
            for face in self.faces:
                face._chain.weights_changed()
        if updates and self.updater.on_host:
            for one in self.net.learnable:
                grads = self.face._chain.grad_of(one.blob)
                if not grads.untouched:
                    grads.later(functools.partial(self._subtracted, one.layer, one.index))

    def _subtracted(self, layer: str, index: int) -> Tensor:
        return self.updater.last_update()[layer, index].clone()
