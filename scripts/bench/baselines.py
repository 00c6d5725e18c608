"""Plain PyTorch training: the nets of the shipped prototxts written by hand in torch.nn, and a loop without frills.

    from bench import baselines                       # with scripts/ on the path
    plan = baselines.PLANS["lenet"]
    images, labels = plan.data(6400, "cpu")
    run = baselines.plan_loop(plan, images, labels, torch.channels_last)
    run(20)                                           # twenty iterations

What every figure of forcereg is compared with: float32, data decoded beforehand as one tensor and sliced,
SGD(foreach=True), no logging, no force. `tests/scripts/test_bench_gpu.py` holds the nets against the shipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class WithinLRN(nn.Module):
    """Local response normalisation within each channel: x over (1 + alpha * mean of the window's squares)^beta."""

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + self.alpha * F.avg_pool2d(x * x, self.size, 1, self.size // 2)).pow(self.beta)


def lenet() -> nn.Sequential:
    """The README's LeNet; (N, 1, 28, 28) to (N, 10)."""
    features = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2, 2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2, 2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(800, 500), nn.ReLU(inplace=True), nn.Linear(500, 10))


def cifar10_full() -> nn.Sequential:
    """cifar10_full; (N, 3, 32, 32) to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(inplace=True),
        WithinLRN(3, 5e-5, 0.75),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        WithinLRN(3, 5e-5, 0.75),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the size (over `stride`), normalised by batch."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); where the shape stays, the shortcut is x itself."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def basic(inputs: int, outputs: int, stride: int) -> Residual:
    """ResNet-20's block of two 3x3 convolutions; a convolution that changes the shape is not normalised."""
    body = [normed(inputs, outputs, 3, stride), nn.ReLU(inplace=True), normed(outputs, outputs, 3)]
    shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return Residual(nn.Sequential(*body), shortcut)


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """ResNet-50's block; the stride is that of its first 1x1 convolution, as in the original."""
    first, second, third = normed(inputs, width, 1, stride), normed(width, width, 3), normed(width, 4 * width, 1)
    body = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), third)
    return Residual(body, nn.Identity() if inputs == 4 * width else normed(inputs, 4 * width, 1, stride))


def resnet20() -> nn.Sequential:
    """ResNet-20 with 1x1 shortcuts; (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [normed(3, 16, 3), nn.ReLU(inplace=True)]
    inputs = 16
    for outputs in (16, 32, 64):
        for index in range(3):
            layers.append(basic(inputs, outputs, 2 if index == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet50() -> nn.Sequential:
    """ResNet-50; (N, 3, 224, 224) to (N, 1000)."""
    stem = [normed(3, 64, 7, 2, bias=True), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
    layers: list[nn.Module] = []
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(blocks):
            layers.append(bottleneck(inputs, width, 2 if index == 0 and width > 64 else 1))
            inputs = 4 * width
    return nn.Sequential(*stem, *layers, nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(2048, 1000))


def alexnet() -> nn.Sequential:
    """AlexNet in one tower with grouped convolutions; (N, 3, 227, 227) to (N, 1000)."""

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    first = [nn.Conv2d(3, 96, 11, 4), relu(), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), nn.MaxPool2d(3, 2)]
    second = [nn.Conv2d(96, 256, 5, padding=2, groups=2), relu(), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)]
    third = [nn.MaxPool2d(3, 2), nn.Conv2d(256, 384, 3, padding=1), relu()]
    fourth = [nn.Conv2d(384, 384, 3, padding=1, groups=2), relu()]
    fifth = [nn.Conv2d(384, 256, 3, padding=1, groups=2), relu(), nn.MaxPool2d(3, 2), nn.Flatten()]
    hidden = [nn.Linear(9216, 4096), relu(), nn.Dropout(0.5), nn.Linear(4096, 4096), relu(), nn.Dropout(0.5)]
    return nn.Sequential(*first, *second, *third, *fourth, *fifth, *hidden, nn.Linear(4096, 1000))


def rectified(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (over `stride`), and its ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3 and 5x5 behind 1x1 ones, and a pooled 1x1."""

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.one = rectified(inputs, one, 1)
        self.three = nn.Sequential(rectified(inputs, three[0], 1), rectified(*three, 3))
        self.five = nn.Sequential(rectified(inputs, five[0], 1), rectified(*five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), rectified(inputs, pooled, 1))
        self.outputs = one + three[1] + five[1] + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


INCEPTIONS = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


class GoogLeNet(nn.Module):
    """GoogLeNet; (N, 3, 224, 224) to (N, 1000), in training to those of the main and both auxiliary classifiers."""

    def __init__(self) -> None:
        super().__init__()
        lrn = [nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0) for _ in range(2)]
        pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(4)]
        stem = [rectified(3, 64, 7, 2), pools[0], lrn[0], rectified(64, 64, 1), rectified(64, 192, 3), lrn[1], pools[1]]
        blocks: dict[str, Inception] = {}
        inputs = 192
        for name, widths in INCEPTIONS.items():
            blocks[name] = Inception(inputs, *widths)
            inputs = blocks[name].outputs
        self.low = nn.Sequential(*stem, blocks["3a"], blocks["3b"], pools[2], blocks["4a"])
        self.middle = nn.Sequential(*(blocks[name] for name in ("4b", "4c", "4d")))
        self.high = nn.Sequential(blocks["4e"], pools[3], blocks["5a"], blocks["5b"])
        self.first, self.second = self.auxiliary(512), self.auxiliary(528)
        self.main = nn.Sequential(nn.AvgPool2d(7, 1), nn.Dropout(0.4), nn.Flatten(), nn.Linear(1024, 1000))

    @staticmethod
    def auxiliary(inputs: int) -> nn.Sequential:
        """A classifier on a (N, inputs, 14, 14) blob."""
        features = [nn.AvgPool2d(5, 3, ceil_mode=True), rectified(inputs, 128, 1), nn.Flatten()]
        hidden = [nn.Linear(2048, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7)]
        return nn.Sequential(*features, *hidden, nn.Linear(1024, 1000))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        low = self.low(x)
        middle = self.middle(low)
        main = self.main(self.high(middle))
        return (main, self.first(low), self.second(middle)) if self.training else main


def loss(out: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Cross entropy; that of auxiliary classifiers counts 0.3."""
    if isinstance(out, Tensor):
        return F.cross_entropy(out, labels)
    main, *others = (F.cross_entropy(one, labels) for one in out)
    return main + 0.3 * sum(others)


def slices(images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Successive batches, again from the first where less than one is left; without end."""
    while True:
        for start in range(0, len(images) - batch + 1, batch):
            yield images[start : start + batch], labels[start : start + batch]


def loop(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch: int,
    layout: torch.memory_format,
    device: torch.device | str,
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Callable[[int], None]:
    """A training loop that a PyTorch user would write; the function returned runs n iterations more.

    images: (N, C, H, W) float32, N >= batch; labels: (N) int64; both are moved to `device` beforehand.
    """
    if len(images) < batch:
        raise ValueError(f"{len(images)} images are less than one batch of {batch}")
    net = net.to(device).to(memory_format=layout).train()  # type: ignore[call-overload,unused-ignore]  # torch < 2.14
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=True)
    batches = slices(images.to(device).contiguous(memory_format=layout), labels.to(device), batch)

    def run(n: int) -> None:
        for _ in range(n):
            x, y = next(batches)
            optimizer.zero_grad()
            with autocast():
                value = loss(net(x), y)
            value.backward()
            optimizer.step()

    return run


@dataclass(frozen=True)
class Plan:
    """A net with the settings of its shipped solver."""

    net: Callable[[], nn.Module]
    solver: str
    """The solver's path below the shipped configs; its net is what `net` is by hand."""
    shape: tuple[int, int, int]
    classes: int
    batch: int
    lr: float
    weight_decay: float

    def data(self, count: int, device: torch.device | str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """`count` random images, uniform from 0 to 1, and labels."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(count, *self.shape, generator=generator)
        return images.to(device), torch.randint(self.classes, (count,), generator=generator).to(device)


CIFAR = (3, 32, 32)
PLANS = {
    "lenet": Plan(lenet, "examples/mnist/lenet_force_solver.prototxt", (1, 28, 28), 10, 64, 0.01, 5e-4),
    "cifar10_full": Plan(
        cifar10_full, "examples/cifar10/cifar10_full_force_solver.prototxt", CIFAR, 10, 100, 0.001, 0.004
    ),
    "resnet20": Plan(resnet20, "examples/cifar10/cifar10_resnet20_force_solver.prototxt", CIFAR, 10, 128, 0.1, 1e-4),
    "alexnet": Plan(alexnet, "models/alexnet/solver.prototxt", (3, 227, 227), 1000, 256, 0.01, 5e-4),
    "googlenet": Plan(GoogLeNet, "models/googlenet/solver.prototxt", (3, 224, 224), 1000, 32, 0.01, 2e-4),
    "resnet50": Plan(resnet50, "models/resnet50/solver.prototxt", (3, 224, 224), 1000, 32, 0.1, 1e-4),
}


def plan_loop(
    plan: Plan, images: Tensor, labels: Tensor, layout: torch.memory_format, batch: int = 0, **options: Any
) -> Callable[[int], None]:
    """`loop` for a plan, where its images are; `batch` in place of the plan's if given, `options` are the loop's."""
    options = {"lr": plan.lr, "weight_decay": plan.weight_decay, **options}
    return loop(plan.net(), images, labels, batch or plan.batch, layout, images.device, **options)
