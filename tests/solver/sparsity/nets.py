"""Small nets with weights that structured sparsity can act on."""

from __future__ import annotations

CONVS = """
name: "convs"
layer { name: "in" type: "Input" top: "x" top: "y" input_param {
  shape { dim: 4 dim: 4 dim: 4 dim: 4 } shape { dim: 4 dim: 2 } } }
layer {
  name: "c1" type: "Convolution" bottom: "x" top: "c1" MODE1 param { P1 } param { }
  convolution_param { num_output: 4 kernel_size: 3 group: GROUP weight_filler { type: "gaussian" std: 0.1 } }
}
layer { name: "act" type: "TanH" bottom: "c1" top: "c1" }
layer {
  name: "ip1" type: "InnerProduct" bottom: "c1" top: "ip1" MODE2 param { P2 } param { }
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.1 } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "ip1" bottom: "y" top: "loss" }
"""


def convs(p1: str = "", p2: str = "", mode1: str = "", mode2: str = "", group: int = 1) -> str:
    """A convolution of weight (4, 4 / group, 3, 3) and an InnerProduct of (2, 16); params and modes of each."""
    given = {"P1": p1, "P2": p2, "MODE1": mode1, "MODE2": mode2, "GROUP": str(group)}
    text = CONVS
    for name, value in given.items():
        text = text.replace(name, value)
    return text


ELTWISE, GRPWISE = (f"connectivity_mode: DISCONNECTED_{kind}" for kind in ("ELTWISE", "GRPWISE"))
ROWS, COLUMNS = "block_group_lasso { xdimen: 36 ydimen: 1 }", "block_group_lasso { xdimen: 1 ydimen: 4 }"
