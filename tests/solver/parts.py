"""What the loop hands to its parts, without a loop: a run, its nets, and what runs their iterations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.net.load import load_net
from forcereg.schema.text import parse_solver
from forcereg.solver.build import steps_of
from forcereg.solver.run import Nets, Run, Teller
from forcereg.solver.steps import Steps
from tests.solver.nets import Recorder


@dataclass(frozen=True)
class Parts:
    """As a Solver has them."""

    run: Run
    nets: Nets
    steps: Steps
    recorder: Recorder


def parts(net: str, settings: str = "", root: Path | None = None, tests: int = 0, **options: Any) -> Parts:
    """Of the net in a text, trained by the solver `settings`."""
    recorder = Recorder()
    run = Run(parse_solver(settings).message, "s", root or Path(), tell=Teller([recorder]))
    nets = Nets(load_net(net, phase="TRAIN", seed=3), [load_net(net, seed=4) for _ in range(tests)])
    nets.share()
    return Parts(run, nets, steps_of(run, nets, options.get("amp"), options.get("cuda_graph", False)), recorder)
