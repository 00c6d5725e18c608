"""Group lasso beside the optimizers of torch.optim: what it adds, that groups become zero, that all else stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import forcereg
from forcereg.nn import GroupLasso


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))


def grouped_norms(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """|w_B| of each value's column in its kernel group, in the weight's shape."""
    parts = weight.unflatten(0, (groups, -1)).norm(dim=1, keepdim=True)
    return parts.expand(groups, weight.shape[0] // groups, *weight.shape[1:]).flatten(0, 1)


def test_it_adds_rows_columns_of_each_group_and_blocks() -> None:
    net = model()
    weight = net[0].weight
    optimizer = GroupLasso(torch.optim.SGD(net.parameters(), lr=0.1), net, 0.5, rows=2, columns=3, blocks=[(9, 1, 4)])
    weight.grad = torch.ones_like(weight)
    optimizer.add()
    w = weight.detach()
    expected = 2 * w / torch.linalg.vector_norm(w, dim=(1, 2, 3), keepdim=True) + 3 * w / grouped_norms(w, 2)
    expected += 4 * w / torch.linalg.vector_norm(w, dim=(2, 3), keepdim=True)
    torch.testing.assert_close(weight.grad, 1 + 0.5 * expected)
    assert net[3].weight.grad is None  # convolutions alone, unless it is said


def test_groups_become_zero_and_stay_for_others_to_cut() -> None:
    net = nn.Conv2d(3, 8, 3, bias=False)
    torch.manual_seed(1)
    optimizer = GroupLasso(torch.optim.SGD(net.parameters(), lr=0.01), net, decay=0.01, columns=0)
    x = torch.randn(4, 3, 6, 6)
    goal = net(x).detach().clone()
    goal[:, ::2] = 0  # half of the filters have nothing to do
    net.weight.data[::2].mul_(0.01)
    before = float(optimizer.penalty)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x) - goal).square().mean().backward()
        optimizer.step()
    rows, _ = optimizer.sparsity["Conv2d"]
    assert rows == 0.5 and float(optimizer.penalty) < before
    assert bool((net.weight[::2] == 0).all())


def test_a_copy_and_a_state_go_on() -> None:
    net = model()
    optimizer = GroupLasso(torch.optim.Adam(net.parameters(), lr=0.01), net, layers=["0", "3"])
    again = copy.deepcopy(optimizer)
    again.load_state_dict(optimizer.state_dict())
    assert "GroupLasso(0.0001)" in repr(again) and again.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decay": float("nan")}, "decay is nan"),
        ({"threshold": -1}, "threshold is -1"),
        ({"blocks": [(7, 1, 1)]}, "layer '0': width 7 doesn't divide the 18 columns"),
        ({"layers": "4"}, "no convolution or Linear '4'"),
    ],
)
def test_wrong_arguments(options: dict[str, object], told: str) -> None:
    net = model()
    with pytest.raises(forcereg.UsageError, match=told):
        GroupLasso(torch.optim.SGD(net.parameters(), lr=0.1), net, **options)  # type: ignore[arg-type]
    with pytest.raises(forcereg.UsageError, match="group lasso"):
        GroupLasso(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), net)
