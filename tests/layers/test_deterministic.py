"""`--deterministic` on a GPU: layers keep to operations of which torch has a deterministic form there."""

from __future__ import annotations

import pytest
import torch

from forcereg.net.load import load_net
from tests.layers.nets import layer_text, noise

FILL = "weight_filler { type: 'gaussian' std: 0.1 }"
LAYERS = [
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 }"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }"),
    ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }"),
    ("SPP", "spp_param { pyramid_height: 2 }"),
    ("Convolution", f"convolution_param {{ num_output: 2 kernel_size: 3 {FILL} }}"),
    ("Deconvolution", f"convolution_param {{ num_output: 2 kernel_size: 3 {FILL} }}"),
    ("InnerProduct", f"inner_product_param {{ num_output: 2 {FILL} }}"),
    ("Im2col", "convolution_param { kernel_size: 3 }"),
    ("LRN", ""),
    ("BatchNorm", ""),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "param"), LAYERS)
def test_a_layer_forward_and_backward(kind: str, param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    net = load_net(layer_text(kind, param, (2, 3, 9, 9)), phase="TRAIN", device="cuda", seed=0)
    x = noise(2, 3, 9, 9).abs().float().cuda().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        net(x0=x)["y0"].sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad is not None and x.grad.isfinite().all()
