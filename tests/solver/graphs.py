"""Solvers that update as on a GPU and run as graphs on the CPU, and what their runs leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers.neuron import Elementwise
from forcereg.solver import build
from forcereg.solver.loop import Solver
from forcereg.solver.updater import Updater
from tests.solver.nets import Recorder, batches, blobs_of, write_solver
from tests.solver.tape import Tape

TWO_LAYERS = """
name: "two"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer {
  name: "ip" type: "InnerProduct" bottom: "x" top: "ip" param { lr_mult: 1 force_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } }
}
layer { name: "act" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "drop" }
layer {
  name: "out" type: "InnerProduct" bottom: "drop" top: "out"
  param { lr_mult: 1 force_mult: 2 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "out" bottom: "y" top: "loss" }
"""
"""With Dropout, a force on each weight and two multipliers."""


@contextlib.contextmanager
def on_device(tape: Tape | None) -> Iterator[None]:
    """Solvers made in the block update as on a GPU, with graphs by `tape`."""
    with pytest.MonkeyPatch.context() as patch:
        never = property(lambda self: False, lambda self, value: vars(self).update(on_host=False))
        patch.setattr(Updater, "on_host", never, raising=False)
        patch.setattr(build, "recorder_for", lambda device: tape)
        yield


@dataclass
class Outcome:
    """What a run leaves behind."""

    solver: Solver
    recorder: Recorder
    tape: Tape | None
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        updater = self.solver.updater
        blobs = blobs_of(self.solver)
        history = {f"history {i}/{j}": t for i, slot in enumerate(updater.history) for j, t in enumerate(slot)}
        average = self.solver.steps.average
        averages = {} if average is None else {f"average {name}": one for name, one in average._named().items()}
        self.state = {
            **blobs,
            **history,
            **averages,
            "losses": self.solver._losses.values,
            "mean": self.solver._losses.mean(),
        }

    @property
    def told(self) -> list[str]:
        """The events without times, as text, in which a NaN equals another."""
        events = self.recorder.events
        return [
            f"{e.kind} { {k: v for k, v in e.fields.items() if k not in ('speed', 'seconds', 'left')} }" for e in events
        ]

    def assert_equals(self, other: Outcome) -> None:
        assert self.state.keys() == other.state.keys()
        for name, found in self.state.items():
            assert torch.equal(found, other.state[name]), name
        assert self.told == other.told
        assert self.solver.updater.first_bad() == other.solver.updater.first_bad()
        assert self.solver.current_step == other.solver.current_step


Inputs = Callable[[int, int], Mapping[str, Tensor]] | None


def trained(root: Path, tape: Tape | None, extra: str, inputs: Inputs = batches, **options: Any) -> Outcome:
    """A whole run of the solver with these settings over `root`/net.prototxt."""
    recorder = Recorder()
    with on_device(tape):
        solver = Solver(write_solver(root, f"display: 4 {extra}"), observers=[recorder], **options)
        with contextlib.suppress(ForceregError):
            solver.solve(inputs)
    return Outcome(solver, recorder, tape)


def both(root: Path, extra: str, inputs: Inputs = batches, **options: Any) -> tuple[Outcome, Outcome]:
    """The run as it is, and by graphs."""
    return trained(root, None, extra, inputs, **options), trained(root, Tape(), extra, inputs, **options)


FORCE = "force_decay: 0.01 momentum: 0.9"
SETTINGS = {
    "plain": "",
    "momentum": "momentum: 0.9 weight_decay: 0.01",
    "L1": 'momentum: 0.9 weight_decay: 0.01 regularization_type: "L1"',
    "multistep": 'lr_policy: "multistep" gamma: 0.5 stepvalue: 5 stepvalue: 9 momentum: 0.5',
    "inv": 'lr_policy: "inv" gamma: 0.1 power: 0.75 momentum: 0.9',
    "poly": 'lr_policy: "poly" power: 1 momentum: 0.9',
    "cosine": 'lr_policy: "cosine" warmup_iter: 5 momentum: 0.9',
    "onecycle": 'lr_policy: "onecycle" momentum: 0.9',
    "averaged": "ema_decay: 0.8 momentum: 0.9",
    "Nesterov": 'type: "Nesterov" momentum: 0.9',
    "AdaGrad": 'type: "AdaGrad" weight_decay: 0.01',
    "RMSProp": 'type: "RMSProp" rms_decay: 0.9',
    "AdaDelta": 'type: "AdaDelta" momentum: 0.95 delta: 1e-6 base_lr: 1',
    "Adam": 'type: "Adam" momentum: 0.9 momentum2: 0.99 base_lr: 0.01',
    "clip": "clip_gradients: 0.1 momentum: 0.9",
    "iter-size": "iter_size: 2 momentum: 0.9 clip_gradients: 1",
    "average-loss": "average_loss: 5",
    "Degradation": FORCE,
    "Constant": f'{FORCE} force_type: "Constant"',
    "Linear": f'{FORCE} force_type: "Linear" weight_decay: 0.001',
    "Gravity": f'{FORCE} force_type: "Gravity" force_direction: "same"',
    "adaptive": f'{FORCE} force_decay_type: "adaptive"',
    "force-iter": f"{FORCE} force_iter: 9",
    "snapshot-diff": 'type: "Nesterov" momentum: 0.9 snapshot_diff: true',
}


IMAGE_RUN = """
momentum: 0.9 weight_decay: 0.001 force_decay: 0.001 max_iter: 18 average_loss: 3 test_iter: 4 test_interval: 6
snapshot: 9 snapshot_prefix: "s"
"""


class Waits(Elementwise):
    """A layer that says it could, and can't."""

    capturable = True

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum() > -1e9)


def notes(outcome: Outcome) -> list[str]:
    return [event.text for event in outcome.recorder.of("note")]
