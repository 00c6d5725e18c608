"""The training loops that force_gradient's own text shows: what they do, and what goes wrong otherwise."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forcereg import force_gradient

PLAIN, MIXED = (
    textwrap.dedent(block)
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", inspect.getdoc(force_gradient) or "", re.MULTILINE)
)
DECAY, FORCE = 0.01, 0.5


class Loop:
    """What the examples take for granted."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.convolutions = [nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8)]
        self.model = nn.Sequential(*self.convolutions).to(dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu")
        self.images = torch.randn(2, 4, 9, 9, dtype=dtype)

    def run(self, code: str) -> list[Tensor]:
        """How far one step moves each weight."""
        before = [conv.weight.detach().clone() for conv in self.convolutions]
        names: dict[str, Any] = {**vars(self), "torch": torch, "force_gradient": force_gradient}
        exec(code, names | {"weight_decay": DECAY, "force_decay": FORCE})
        return [conv.weight.detach() - old for conv, old in zip(self.convolutions, before, strict=True)]


def steps(loop: Loop, force: bool = True) -> list[Tensor]:
    """The same by the formula, in float32."""
    loss = loop.model(loop.images).square().mean()
    found = []
    for conv, grad in zip(
        loop.convolutions, torch.autograd.grad(loss, [conv.weight for conv in loop.convolutions]), strict=True
    ):
        pull = force_gradient(conv.weight, "Constant", groups=conv.groups) if force else 0.0
        found.append(-0.1 * (grad + DECAY * conv.weight.detach() + FORCE * pull))
    return found


def test_both_examples_are_there() -> None:
    assert "scaler.unscale_(optimizer)" in MIXED and "scaler" not in PLAIN
    assert "groups=conv.groups" in PLAIN and "groups=conv.groups" in MIXED


def test_the_plain_loop() -> None:
    for found, wanted in zip(Loop().run(PLAIN), steps(Loop()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_mixed_loop_adds_the_whole_force() -> None:
    found, wanted, without = Loop().run(MIXED), steps(Loop()), steps(Loop(), force=False)
    for step, whole in zip(found, wanted, strict=True):
        assert (step - whole).norm() < 0.02 * whole.norm()
    assert (found[0] - without[0]).norm() > 0.2 * wanted[0].norm()


def test_before_unscaling_it_would_be_as_many_times_too_weak() -> None:
    late = "".join(line for line in MIXED.splitlines(keepends=True) if "unscale_" not in line)
    found, without = Loop().run(late), steps(Loop(), force=False)
    plain = steps(Loop())
    for step, whole, bare in zip(found[:1], plain, without, strict=False):
        assert (step - bare).norm() < 0.05 * (whole - bare).norm()


def test_without_groups_filters_of_different_groups_are_pulled_together() -> None:
    depthwise = Loop().convolutions[2].weight
    assert not force_gradient(depthwise, "Constant", groups=8).any()
    assert force_gradient(depthwise, "Constant").norm() > 0.1


@pytest.mark.parametrize("code", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_filters_draw_together(code: str) -> None:
    loop = Loop()
    loop.optimizer.param_groups[0]["lr"] = 0.02

    def spread() -> float:
        rows = nn.functional.normalize(loop.convolutions[0].weight.detach().flatten(1))
        return float((1 - rows @ rows.T).sum())

    first = spread()
    for _ in range(20):
        loop.run(code)
    assert spread() < 0.9 * first
