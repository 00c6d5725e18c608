"""The nets of the comparison: how each is trained first, trained on, cut and fine-tuned; all arms share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Study:
    """One net. `base` and `on`: solver fields of the first training and of the one that goes on from its weights.

    `rates`: multiples of base_lr and the share of the second training at which each begins. `tuning`: iterations of
    fine-tuning, at `tuned_at` times base_lr. `recalibrate`: training batches for BatchNorm's statistics once cut.
    `tests`: batches of a test.
    `edits`: text of the net file to replace.
    """

    solver: str
    net: str
    base: Mapping[str, Any]
    iterations: int
    on: int
    rates: tuple[tuple[float, float], ...]
    tuning: int
    tuned_at: float
    recalibrate: int | None = None
    tests: int = 100
    edits: dict[str, str] = field(default_factory=dict)

    def scaled(self, scale: float) -> Study:
        """The same with all iterations times that, for a try."""
        if scale == 1:
            return self
        least = {"iterations": 20, "on": 20, "tuning": 20, "tests": 3}
        return replace(self, **{name: max(low, round(getattr(self, name) * scale)) for name, low in least.items()})


STUDIES = {
    "lenet": Study(
        solver="examples/mnist/lenet_force_solver.prototxt",
        net="examples/mnist/lenet_train_test_force.prototxt",
        base={"test_interval": 2500},
        iterations=10_000,
        on=6_000,
        rates=((1, 0), (0.1, 0.75)),
        tuning=300,
        tuned_at=0.1,
    ),
    "convnet": Study(
        solver="examples/cifar10/cifar10_full_force_solver.prototxt",
        net="examples/cifar10/cifar10_full_train_test_force.prototxt",
        base={"stepvalue": [8000, 9500], "test_interval": 2500},
        iterations=10_000,
        on=6_000,
        rates=((1, 0), (0.1, 0.75)),
        tuning=500,
        tuned_at=0.1,
    ),
    "resnet20": Study(
        solver="examples/cifar10/cifar10_resnet20_force_solver.prototxt",
        net="examples/cifar10/cifar10_resnet20_train_test_force.prototxt",
        base={"lr_policy": "poly", "power": 1.0, "stepvalue": [], "test_interval": 1500},
        iterations=9_000,
        on=1_500,
        rates=((0.1, 0), (0.01, 0.75)),
        tuning=300,
        tuned_at=0.01,
        recalibrate=20,
        edits={
            "batch_size: 256": "batch_size: 128",
            # Caffe's 0.999 remembers 1,000 iterations: what so short a training has left behind
            'type: "BatchNorm"\n': 'type: "BatchNorm"\n  batch_norm_param { moving_average_fraction: 0.95 }\n',
        },
    ),
}

# a third of the time, for what a larger one leaves undone
STUDIES["resnet20_short"] = replace(
    STUDIES["resnet20"], iterations=6_000, edits=STUDIES["resnet20"].edits | {"batch_size: 256": "batch_size: 32"}
)


def net_text(study: Study) -> str:
    """Its net file as it is trained here."""
    text = Path(study.net).read_text()
    for old, new in study.edits.items():
        text = text.replace(old, new)
    return text
