"""Rank clipping in a training loop of one's own: chains lose the ranks that their weights no longer need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forcereg.errors import UsageError, check_share
from forcereg.lowrank.clipping import Cut, Kind, cut
from forcereg.lowrank.factor import PAIR
from forcereg.nn.fold import shared
from forcereg.nn.kinds import chains_of, filters, groups_of, is_transposed, stands_for, swapped
from forcereg.nn.select import bare
from forcereg.system.arguments import checked

HELD = {
    **dict.fromkeys(("momentum_buffer", "exp_avg", "grad_avg"), Kind.GRADIENT),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"), Kind.SQUARED_GRADIENT),
    "acc_delta": Kind.SQUARED_STEP,
}
"""What torch.optim's optimizers keep of a weight, by its name in their state."""


@dataclass(frozen=True, eq=False)
class _Reduced:
    """One pair: its weights before and now, and the maps from one to the other."""

    before: tuple[nn.Parameter, nn.Parameter]
    after: tuple[nn.Parameter, nn.Parameter]
    groups: int
    transposed: bool
    cut: Cut

    def projected(self, kind: Kind, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """What has the shapes of `before`, as what has those of `after`."""
        first = swapped(first, self.groups) if self.transposed else first
        pair = [one.reshape(self.groups, len(one) // self.groups, -1) for one in (first, second)]
        one, other = self.cut.project(kind, *pair)
        one, other = one.reshape(-1, *first.shape[1:]), other.reshape(len(second), -1, *second.shape[2:])
        return swapped(one, self.groups) if self.transposed else one, other


@dataclass(frozen=True, eq=False)
class Clipped:
    """What rank clipping did. `ranks`: chain -> its rank now; `kept`: of those cut, the share of the squared norm.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3))
    >>> small = forcereg.nn.decompose(model, torch.randn(1, 3, 8, 8), rule=forcereg.Ranks([8])).model
    >>> optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    >>> clipped = forcereg.nn.rank_clipping(small, energy=0.5)
    >>> clipped.tell(optimizer)
    >>> clipped.ranks["0"] < 8, optimizer.param_groups[0]["params"][0] is small[0].lowrank.weight
    (True, True)
    """

    ranks: dict[str, int]
    kept: dict[str, float]
    _reduced: tuple[_Reduced, ...]

    @torch.no_grad()
    def tell(self, optimizer: Optimizer) -> None:
        """Give an optimizer of torch.optim, or a `Force`, the new weights in the old ones' place, history projected.

        Momenta go as gradients, means of squares entry by entry (see forcereg.lowrank.clipping). Of a weight for which
        the optimizer keeps anything else of its shape the history begins anew.
        """
        new = {id(old): one for pair in self._reduced for old, one in zip(pair.before, pair.after, strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [new.get(id(one), one) for one in group["params"]]
        for pair in self._reduced:
            states = [optimizer.state.pop(old, {}) for old in pair.before]
            for one, state in zip(pair.after, _projected(pair, states), strict=True):
                if state:
                    optimizer.state[one] = state


def _projected(pair: _Reduced, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{}, {}]
    if any(states[0].keys() ^ states[1].keys()):
        return made
    for name in states[0]:
        values = [state[name] for state in states]
        like = [isinstance(v, Tensor) and v.shape == old.shape for v, old in zip(values, pair.before, strict=True)]
        if not any(like):
            made[0][name], made[1][name] = values
        elif all(like) and name in HELD:
            for state, value, old in zip(made, pair.projected(HELD[name], *values), values, strict=True):
                state[name] = value.to(old.dtype).contiguous()
        else:
            return [{}, {}]
    return made


@checked
@torch.no_grad()
def rank_clipping(model: nn.Module, energy: float = 0.999) -> Clipped:
    """Give each pair X.lowrank -> X.linear, in place, the smallest rank that keeps `energy` of its squared norm.

    To be called now and then while training, behind a step, and told to the optimizer:

        clipped = forcereg.nn.rank_clipping(model, energy=0.999)
        clipped.tell(optimizer)

    Of grouped pairs every group keeps as much. Weights become new parameters, so a model in DistributedDataParallel or
    torch.compile has to be wrapped anew. Frozen and shared weights and chains of other methods stay. Raises UsageError
    for an energy outside 0 to 1, and for a model without such a pair.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3))
    >>> made = forcereg.nn.decompose(model, torch.randn(1, 3, 8, 8), rule=forcereg.Ranks([16]), even_if_dearer=True)
    >>> forcereg.nn.rank_clipping(made.model, energy=1.0).ranks
    {'0': 16}
    """
    check_share("the energy to keep", energy)
    inside = bare(model)
    users, ranks, kept, reduced = shared(inside), {}, {}, []
    for name, chain in list(chains_of(inside)):
        if not _is_pair(chain) or any(id(one) in users or not one.requires_grad for one in chain.parameters()):
            continue
        first, second = chain
        groups = groups_of(first)
        blocks = [filters(one).reshape(groups, len(filters(one)) // groups, -1) for one in (first, second)]
        found = cut(blocks[0], blocks[1], energy)
        if found is not None:
            reduced.append(_reduce(first, second, groups, found))
            kept[name] = found.share
        ranks[name] = len(filters(first))
    if not ranks:
        raise UsageError("the model has no pair X.lowrank -> X.linear that learns; make them by forcereg.nn.decompose")
    return Clipped(ranks, kept, tuple(reduced))


def _is_pair(chain: nn.Sequential) -> bool:
    standing = stands_for(chain)
    if standing is None or standing.slots != PAIR:
        return False
    second: Any = chain[1]
    # a combination at each position: with a window it would be no matrix
    plain = not is_transposed(second) and {*second.weight.shape[2:]} <= {1}
    return plain and groups_of(chain[0]) == groups_of(second)


def _reduce(first: Any, second: Any, groups: int, found: Cut) -> _Reduced:
    before = first.weight, second.weight
    pair = _Reduced(before, before, groups, is_transposed(first), found)
    values = pair.projected(Kind.WEIGHT, *(one.detach() for one in before))
    for module, value in zip((first, second), values, strict=True):
        module.weight = nn.Parameter(value.to(module.weight.dtype).contiguous())
    if isinstance(first, nn.Linear):
        first.out_features = second.in_features = found.rank
    else:
        first.out_channels = second.in_channels = found.rank
    return _Reduced(before, (first.weight, second.weight), groups, pair.transposed, found)
