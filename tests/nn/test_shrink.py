"""Shrunk modules give what they did, in the model's own code."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forcereg
from forcereg.errors import ForceregError
from forcereg.nn.kinds import KINDS
from forcereg.nn.trace import NORMS
from tests.nn.models import vision, vit


class Residual(nn.Module):
    """Sums, products with a gate, parts joined and pooled, a view; hooks of functions and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.act = nn.Conv2d(8, 8, 1), nn.PReLU(8)
        self.left, self.right = nn.Conv2d(8, 6, (3, 5), padding="same"), nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 8, 4, 2, 1, groups=2)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8)
        self.head, self.last = nn.Linear(8 * 16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.b(F.relu(self.a(x)))
        x = self.act(x + y)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.depth(self.up(x).clamp(min=0))
        x = F.max_pool2d(x, 4)
        x = F.gelu(self.head(x.view(x.size(0), -1)))
        found: Tensor = self.last(x)
        return found


class Words(nn.Module):
    """An MLP over (N, T, F), where channels are last."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 24), nn.Linear(24, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return found


def zeroed(model: nn.Module, chance: random.Random, share: float = 0.25) -> nn.Module:
    """With rows and columns of zeros, and statistics as training leaves them."""
    with torch.no_grad():
        for module in model.modules():
            one: Any = module
            if type(one) in NORMS:
                one.running_mean.normal_()
                one.running_var.uniform_(0.5, 2)
            if type(one) in KINDS:
                for row in range(len(one.weight)):
                    one.weight[row] *= chance.random() > share
                for column in range(one.weight.shape[1]):
                    one.weight[:, column] *= chance.random() > share
                if one.bias is not None:
                    one.bias *= (torch.rand(len(one.bias)) > share).float()
    return model


def wide(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model).double().eval()(x.double())
    return found


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 8, 8)),
    "words": (Words, (2, 5, 6)),
    "sequential": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(32, 9), nn.Tanh(),
            nn.Dropout(), nn.Linear(9, 3),
        ),
        (2, 3, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_outputs_are_equal(name: str, seed: int) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(seed)
    model, x = zeroed(make(), random.Random(f"{name} {seed}")), torch.randn(shape)
    model.train()
    before = copy.deepcopy(model.state_dict())
    made = forcereg.nn.shrink(model, x)
    assert torch.allclose(wide(model, x), wide(made.model, x), rtol=0, atol=1e-6)
    assert made.report["difference"] < 1e-6 and type(made.model) is type(model) and made.model.training
    assert made.report["net"]["params_after"] < made.report["net"]["params_before"]
    # the model itself is as it was
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # and it trains
    made.model(x).sum().backward()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(lambda: vision("resnet18", num_classes=5), (1, 3, 32, 32), id="resnet18"),
        pytest.param(lambda: vision("mobilenet_v2", width_mult=0.25, num_classes=5), (1, 3, 32, 32), id="mobilenet"),
        pytest.param(vit, (1, 3, 32, 32), id="vit"),
    ],
)
def test_other_people_s_models(
    make: Callable[[], nn.Module], shape: tuple[int, ...], request: pytest.FixtureRequest, long_form: bool
) -> None:
    if "resnet18" in request.node.name and not long_form:
        pytest.skip("with --long")
    torch.manual_seed(1)
    model, x = zeroed(make(), random.Random(1), 0.2), torch.randn(shape)
    made = forcereg.nn.shrink(model, x)
    old, new = wide(model, x), wide(made.model, x)
    assert float((old - new).abs().max()) <= 1e-6 * max(1.0, float(old.abs().max()))
    assert made.report["net"]["macs_after"] < made.report["net"]["macs_before"]


def test_sizes() -> None:
    """A kernel's border, an input's column and neurons; a constant goes on through a reflected border."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
    )
    with torch.no_grad():
        model[0].weight[4:] = 0
        model[0].bias[4:] = 0.5  # type: ignore[index]
        model[0].weight[..., [0, 2]] = 0
    made = forcereg.nn.shrink(model, torch.randn(1, 2, 8, 8))
    assert [(one["before"], one["after"]) for one in made.layers] == [
        ([6, 2, 3, 3], [4, 2, 3, 1]),
        ([4, 6, 3, 3], [4, 4, 3, 3]),
    ]
    assert (made.model[0].kernel_size, made.model[0].padding, made.model[0].out_channels) == ((3, 1), (1, 0), 4)
    for size in (5, 9):
        x = torch.randn(2, 2, size, size)
        assert torch.allclose(wide(model, x), wide(made.model, x), rtol=0, atol=1e-6)


class Changing(nn.Module):
    """Reads a tensor again that was changed in place: by a module, a method, or under another name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.relu = how, nn.ReLU(inplace=True)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight[:4] = layer.bias[:4] = 0  # type: ignore[index]
            self.a.bias[:2] = -1  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.a(x)
        if self.how == "module":
            self.relu(x)
        elif self.how == "method":
            x.add_(1)
        elif self.how == "view":
            x.view(x.size(0), -1).add_(1)
        else:
            y += 1
        found: Tensor = self.c(self.b(x) + x)
        return found


@pytest.mark.parametrize("how", ["module", "method", "view"])
def test_what_changes_in_place_is_not_taken_for_what_it_was(how: str) -> None:
    """Of b's zeros nothing can go either: the sum has all channels of what was changed."""
    with pytest.raises(ForceregError, match="nothing to cut"):
        forcereg.nn.shrink(Changing(how), torch.randn(1, 3, 6, 6))


def test_a_model_that_torch_fx_takes_for_another_is_warned_of() -> None:
    """`y += 1` makes a new y of what it traces with, where the model changes x, too."""
    with pytest.warns(UserWarning, match="Changing: the outputs for the example differ by"):
        forcereg.nn.shrink(Changing("operator"), torch.randn(1, 3, 6, 6))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[0].bias[2:] = 0  # type: ignore[index]
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = tied()
    model[2] = nn.Linear(4, 4)  # type: ignore[operator]
    model[2].register_forward_hook(lambda *given: None)  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(Branching, "Branching can't be followed by torch.fx: TraceError: ", id="branches"),
        pytest.param(dense, "no channel or neuron of zeros, so nothing to cut", id="dense"),
        pytest.param(tied, "0: it shares a parameter; 2: it shares a parameter", id="shared"),
        pytest.param(hooked, "2: it has hooks", id="hooks"),
    ],
)
def test_what_cannot_be(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ForceregError) as caught:
        forcereg.nn.shrink(make(), torch.randn(1, 4))
    assert message in str(caught.value) and "\n" not in str(caught.value)
