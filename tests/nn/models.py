"""Models of other people's making, small where they can be built small; weights by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Convolutions over time before an LSTM, a Linear behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(5, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 12, 3, stride=2))
        self.lstm = nn.LSTM(12, 10, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(self.features(x).transpose(1, 2))[0][:, -1])
        return found


def vision(name: str, **options: Any) -> nn.Module:
    model: nn.Module = pytest.importorskip("torchvision.models").__dict__[name](weights=None, **options)
    return model


def vit() -> nn.Module:
    kind = pytest.importorskip("torchvision.models").VisionTransformer
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    model: nn.Module = kind(**sizes, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr, arg-type]  # as built it is zero
    return model


def densenet() -> nn.Module:
    kind = pytest.importorskip("torchvision.models").DenseNet
    model: nn.Module = kind(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=5)
    return model


def vgg() -> nn.Module:
    """vgg11_bn without its three large Linear layers."""
    return nn.Sequential(vision("vgg11_bn").features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))  # type: ignore[arg-type]


IMAGE, SOUND = (1, 3, 32, 32), (2, 5, 9)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "densenet": (densenet, IMAGE),
    "vit": (vit, IMAGE),
    "lstm": (Recurrent, SOUND),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small", width_mult=0.1, num_classes=5), IMAGE),
}
FULL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: vision("resnet18"), IMAGE),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small"), IMAGE),
    "vgg11_bn": (vgg, IMAGE),
    "densenet121": (lambda: vision("densenet121"), IMAGE),
    "vit": (vit, IMAGE),
    "lstm": (Recurrent, SOUND),
}


def built(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The model in its test phase, with statistics of a few batches, and an example."""
    torch.manual_seed(1)
    model, x = build(), torch.randn(shape)
    with torch.no_grad():
        model.train()(torch.randn(8, *shape[1:]))
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.weight, 0.5, 1.5)
            nn.init.normal_(one.bias, std=0.1)
    return model.eval(), x


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float((one - other).detach().abs().max() / other.detach().abs().max())
