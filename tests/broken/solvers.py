"""Solvers with impossible or extreme settings, and nets that are right but larger than memory."""

from __future__ import annotations

from tests.broken.case import NET, SOLVER, Case, Content, input_layer

BOTH = ("train", "check-solver")
LARGEST = 2147483647
WIDE = (
    'layer {{ name: "d" type: "DummyData" top: "x" dummy_data_param {{ shape {{ dim: {} dim: {} }} }} }}\n'
    'layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ num_output: {} {} }} {} }}\n'
    'layer {{ name: "l" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }}\n'
)
"""Batch, inputs, outputs, further parameters, param blocks."""
LONG_NAME = "x" * 5000


def _solver(id: str, text: str, expected: str, commands: tuple[str, ...] = BOTH, net: Content = NET) -> Case:
    """A solver with this text, in place of the settings that it gives."""
    given = {part.split(":")[0].strip() for part in text.replace("\n", " ").split(" ") if ":" in part}
    kept = [line for line in SOLVER.replace("  ", " ").split("\n") if line.split(":")[0] not in given]
    return Case(f"solver-{id}", net, expected, commands, solver="\n".join([*kept, text]))


SETTINGS = [
    _solver("empty", "", "expected exactly one of net, net_param", ("train",), "").__class__(
        "solver-empty", NET, "solver.prototxt: lr_policy", ("train",), solver=""
    ),
]

CASES: list[Case] = []
assert input_layer
