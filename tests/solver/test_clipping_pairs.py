"""Which layers of a net rank clipping reduces, what it tells of the others, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.solver.loop import Solver
from tests.solver.clipping_nets import CHAINS, EXTRA, clipped_solver, write_chains
from tests.solver.nets import Recorder, regression, write_images, write_solver

RELU2, LINEAR = 'layer { name: "relu2"', 'layer {\n  name: "fc_linear"'
SEE = 'layer { name: "see" type: "Silence" bottom: "fc_lowrank" RULE }\n'
BETWEEN = 'layer { name: "between" type: "ReLU" bottom: "fc_lowrank" top: "fc_lowrank" }\n'
SPOILT = {
    "no pair": ("fc_lowrank", "fc_first"),
    "bias between": ("num_output: 7 bias_term: false", "num_output: 7"),
    "frozen": ('bottom: "fc_lowrank" top: "fc"', 'bottom: "fc_lowrank" top: "fc" param { lr_mult: 0 }'),
    "layer between": (LINEAR, BETWEEN + LINEAR),
    "read elsewhere": (RELU2, SEE.replace("RULE", "") + RELU2),
    "read in one net": (RELU2, SEE.replace("RULE", "include { phase: TEST }") + RELU2),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_no_pair_stays(what: str, tmp_path: Path) -> None:
    net = CHAINS.replace(*SPOILT[what])
    assert net != CHAINS
    write_images(tmp_path, net)
    solver, _ = clipped_solver(tmp_path, share=0.5)
    assert [pair.name for pair in solver.clipping.pairs] == ["conv"]  # type: ignore[union-attr]


def test_what_stays_is_told(tmp_path: Path) -> None:
    """A chain of another method or a frozen one, and a limit before the first look."""
    vertical = "bias_term: false kernel_h: 3 pad_h: 1"
    horizontal = "kernel_h: 1 kernel_w: 1"
    net = CHAINS.replace("conv_lowrank", "conv_v").replace("conv_linear", "conv_h")
    net = net.replace("kernel_size: 3 pad: 1 group: 2 bias_term: false", f"{vertical} kernel_w: 1")
    net = net.replace("kernel_size: 1 group: 2", horizontal)
    write_images(tmp_path, net)
    recorder = Recorder()
    solver = Solver(write_solver(tmp_path, EXTRA + "0"), observers=[recorder])
    solver.clip_ranks(0.5, until=3)
    assert solver.clipping is not None and list(solver.clipping.ranks) == ["fc"]
    why = "only X_lowrank -> X_linear that learn and share nothing are reduced"
    assert [e.text for e in recorder.of("note")] == [f"Rank clipping leaves conv_v -> conv_h as they are: {why}"]
    assert "no rank will be reduced: the first look is at iteration 3, clip-until is 3" in recorder.texts()
    solver.step(8)
    assert solver.clipping.ranks == {"fc": 7}


@pytest.mark.parametrize(
    "change",
    [("kernel_size: 1 group: 2", "kernel_size: 3 group: 2"), ("kernel_size: 1 group: 2", "kernel_size: 1 group: 1"),
     ("kernel_size: 1 group: 2", "kernel_size: 1 stride: 2 group: 2")],
    ids=["kernel", "groups", "stride"],
)  # fmt: skip
def test_the_second_layer_only_combines(change: tuple[str, str], tmp_path: Path) -> None:
    write_images(tmp_path, CHAINS.replace(*change))
    solver, _ = clipped_solver(tmp_path, share=0.5)
    assert [pair.name for pair in solver.clipping.pairs] == ["fc"]  # type: ignore[union-attr]


def test_errors(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, "test_interval: 2")
    with pytest.raises(ForceregError) as info:
        solver.clip_ranks(0.9)
    assert str(info.value) == (
        f"{solver.net.spec.filename}: rank clipping needs layers X_lowrank -> X_linear that learn and share nothing; "
        "make them by `forcereg decompose --snapshot S --error 0 --even-if-dearer`"
    )
    write_chains(tmp_path)
    with pytest.raises(ForceregError, match=r"cannot write snapshots to '.*/gone/s'"):
        clipped_solver(tmp_path, EXTRA.replace('"s"', '"gone/s"') + "0")
    with pytest.raises(ForceregError, match=r"looks at ranks every test_interval iterations; set it"):
        clipped_solver(tmp_path, "base_lr: 0.1")
