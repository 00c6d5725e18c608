"""Which of the recorded layer cases can't be judged as ONNX files, and why; `left_out.md` is their list.

python -m tests.exports.golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import forcereg.exports.operators  # noqa: F401  (registers)
from forcereg.net.module import Net
from forcereg.registry import onnx_form
from tests.golden_checks import load_layer
from tests.golden_files import Case, bundled

LIST = Path(__file__).with_name("left_out.md")
HEAD = "# Recorded layer cases that aren't judged as ONNX files\n\n| case | why |\n|---|---|\n"


def in_test_phase(case: Case) -> tuple[Net, dict[str, torch.Tensor]]:
    """The case's net in phase TEST with its weights, and its inputs."""
    net, inputs, _ = load_layer(Case(case.id, case.path, case.inside, {**case.attrs, "phase": "TEST"}))
    return net, inputs


@torch.no_grad()
def reason(case: Case) -> str:
    """Why a case is left out; empty for one that is judged."""
    net, inputs = in_test_phase(case)
    types = {spec.type for spec, module in net.built if module is not None and spec.type != "Input"}
    if without := sorted(types - set(onnx_form)):
        return f"{', '.join(without)}: a loss or score, nothing at inference"
    if not net.spec.outputs:
        return "gives nothing"
    found = net(inputs)
    with case.open() as group:
        recorded = {name: group[f"outputs/{name}"][()] for name in net.spec.outputs}
    if all(np.allclose(found[name].numpy(), values, rtol=1e-3, atol=1e-4) for name, values in recorded.items()):
        return ""
    return "recorded in training, with other values than in tests"


def listed() -> str:
    """The list."""
    rows = ((case.id, reason(case)) for case in bundled("layers"))
    return HEAD + "".join(f"| {name} | {why} |\n" for name, why in rows if why)


if __name__ == "__main__":
    LIST.write_text(listed(), encoding="utf-8")
