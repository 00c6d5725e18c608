"""Decomposed nets for tests of rank clipping."""

from __future__ import annotations

from pathlib import Path

from forcereg.solver.loop import Solver
from tests.solver.nets import IMAGE_DATA, Recorder, write_images, write_solver

CHAINS = (
    '\nname: "chains"'
    + IMAGE_DATA
    + """layer {
  name: "stem" type: "Convolution" bottom: "data" top: "stem"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer {
  name: "conv_lowrank" type: "Convolution" bottom: "stem" top: "conv_lowrank" param { force_mult: 1 }
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 bias_term: false weight_filler { type: "xavier" } }
}
layer {
  name: "conv_linear" type: "Convolution" bottom: "conv_lowrank" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 8 kernel_size: 1 group: 2 weight_filler { type: "xavier" } }
}
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }
layer {
  name: "fc_lowrank" type: "InnerProduct" bottom: "conv" top: "fc_lowrank"
  inner_product_param { num_output: 7 bias_term: false transpose: true weight_filler { type: "xavier" } }
}
layer {
  name: "fc_linear" type: "InnerProduct" bottom: "fc_lowrank" top: "fc"
  inner_product_param { num_output: 7 transpose: true weight_filler { type: "xavier" } }
}
layer { name: "relu2" type: "ReLU" bottom: "fc" top: "fc" }
layer {
  name: "ip" type: "InnerProduct" bottom: "fc" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
)

EXTRA = (
    'momentum: 0.9 weight_decay: 0.001 lr_policy: "multistep" gamma: 0.5 stepvalue: 5 stepvalue: 9 base_lr: 0.02 '
    'average_loss: 4 display: 1 test_iter: 1 test_interval: 3 force_decay: 0.001 force_type: "Constant" '
    'snapshot_prefix: "s" max_iter: 14 snapshot: '
)


def clipped_solver(
    root: Path, extra: str = EXTRA + "0", share: float = 0.8, until: int | None = None, **options: object
) -> tuple[Solver, Recorder]:
    """A solver with rank clipping over the net of two chains, conv (two groups) and fc (transposed)."""
    recorder = Recorder()
    solver = Solver(write_solver(root, extra), observers=[recorder], **options)  # type: ignore[arg-type]
    solver.clip_ranks(share, until)
    return solver, recorder


def write_chains(root: Path) -> Path:
    """`root` with the net and its data."""
    return write_images(root, CHAINS)


def ranks_told(recorder: Recorder) -> list[tuple[int, dict[str, int]]]:
    """(iteration, layer -> rank) of every look."""
    return [(e.iteration, {one["layer"]: one["rank"] for one in e.layers}) for e in recorder.of("ranks")]
