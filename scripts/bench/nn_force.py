"""What the force costs beside an optimizer: steps of torchvision's ResNet-18 with and without `forcereg.nn.Force`.

    python scripts/bench/nn_force.py [--batch 32] [--side 224] [--rounds 5] [--type Degradation] [--json FIGURES.json]

Both train the same model by SGD with momentum on random images, a step each in turn; ratios are of medians. `force
alone` is the time of what the force adds to a step, by itself.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from contest import in_turns
from table import Figure, rows, write_figures
from torch import nn

import forcereg

GOAL = 1.05
"""The most that a step with force may take of one without."""


def stepper(model: nn.Module, force_type: str | None, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A call that trains one step."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if force_type is not None:
        optimizer = forcereg.nn.Force(optimizer, model, 1e-4, force_type)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--type", default="Degradation")
    parser.add_argument("--json")
    args = parser.parse_args()
    from torchvision.models import resnet18

    torch.manual_seed(0)
    plain = resnet18(weights=None)
    forced = copy.deepcopy(plain)
    x, y = torch.randn(args.batch, 3, args.side, args.side), torch.randint(1000, (args.batch,))
    alone = forcereg.nn.Force(torch.optim.SGD(forced.parameters(), lr=0.01), forced, 1e-4, args.type)
    calls = [stepper(plain, None, x, y), stepper(forced, args.type, x, y), alone.add]
    for call in calls[:2]:  # before anything is timed: buffers and kernels; gradients for the third
        call()
    calls[2]()
    times = in_turns(calls, args.rounds)
    part = f"ResNet-18, batch {args.batch}, {args.type}"
    figures = [
        Figure(part, "step with force / without", times[1] / times[0], GOAL),
        Figure(part, "1 + force alone / step", 1 + times[2] / times[0], GOAL),
    ]
    threads, version = torch.get_num_threads(), torch.__version__
    machine = f"CPU, {threads} threads, torch {version}"
    print("\n".join([machine, "", *rows(figures)]))
    if args.json:
        write_figures(args.json, figures, {"seconds": times}, machine)


if __name__ == "__main__":
    main()
