"""Force regularization: the force that Caffe's solver adds to the gradient of a weight.

Every filter w_i (row of a weight, of norm l_i and direction u_i) is pulled towards every other one:

    G_i = l_i * sum_j K_ij ((u_i . u_j) u_i - u_j)        K_ij = |u_i - u_j| ** -p

that is, minus the part of the pull sum_j K_ij u_j that is tangent to the sphere at u_i: descending along G
makes filters alike. Wen et al., "Coordinating Filters for Faster Deep Neural Networks" (ICCV 2017), section 3;
the thresholds are Caffe's on the CPU.

A force type is one function: squared distances |u_i - u_j|^2 in, K out. The rows are the filters (the paper's), or
those of another unfolding of the weight, which another method cuts: a view, see forcereg.lowrank.views. The
arithmetic is in forcereg.solver.pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.lowrank.views import VIEWS, misfit, unfoldings
from forcereg.registry import force_type as registry
from forcereg.solver.pairs import Kernel, Member, Pairs, Stack, Sums
from forcereg.system.arguments import checked

MIN_DISTANCE = 1e-4  # a pair nearer than this has no force, except in Degradation
MIN_FORCE = 1e-8  # "adaptive" leaves a weight alone whose whole force is smaller than this

WASTE = {"cpu": 8_000, "cuda": 200_000}
"""Entries of padding that cost about as much as launching the n x n part once more."""

DECAY_TYPES = ("fixed", "adaptive")
DIRECTIONS = ("all", "same")
METRICS = ("weights", "responses")


@registry("Degradation")
def degradation(squared: Tensor) -> Tensor:
    """p = 0, the paper's L2-norm force: proportional to the distance, however near."""
    return squared.fill_(1)


@registry("Constant")
def constant(squared: Tensor) -> Tensor:
    """p = 1, the paper's L1-norm force: the same strength at every distance."""
    return apart(squared).rsqrt_()


@registry("Linear")
def linear(squared: Tensor) -> Tensor:
    """p = 2: strength 1 / distance."""
    return apart(squared).reciprocal_()


@registry("Gravity")
def gravity(squared: Tensor) -> Tensor:
    """p = 3: strength 1 / distance^2."""
    return apart(squared).rsqrt_().pow_(3)


def apart(squared: Tensor) -> Tensor:
    """Makes squared distances inf for pairs too near to act on each other (a filter and itself, too), in place."""
    return torch.threshold_(squared, MIN_DISTANCE**2, inf)


@checked
@torch.no_grad()
def force_gradient(
    weight: Tensor,
    force_type: str = "Degradation",
    groups: int = 1,
    view: str = "FILTERS",
    moments: Tensor | None = None,
) -> Tensor:
    """The force on `weight`, to be scaled by force_decay * force_mult and added to its gradient.

    weight: two axes or more, its rows along axis 0; the result has its shape, dtype and memory layout.
    With `groups` > 1 each block of rows is coordinated alone (Caffe's fork coordinates all together). `view`: what is
    drawn together, "FILTERS", "CHANNELS" (input-channel slices), "BOTH", the sum of these two, or "VERTICAL" (the
    rows of `vh`'s unfolding): what the method that will cut the weight lowers the rank of. `moments`: E[x x^T] of what
    a filter is multiplied with, (K, K) or (groups, K, K), K entries a filter, on any scale: norms and cosines are then
    those of responses, w^T M w, and filters alike are such as respond alike; for the view "FILTERS". In a training
    loop of one's own the force is added behind weight decay, for each convolution of `model`:

        optimizer.zero_grad()
        model(images).square().mean().backward()
        for conv in convolutions:
            force = force_gradient(conv.weight, "Constant", groups=conv.groups)
            conv.weight.grad += weight_decay * conv.weight.detach() + force_decay * force
        optimizer.step()

    Without `groups=conv.groups` filters of different groups, which see different channels, are pulled together; with it
    a depthwise convolution, of one filter a group, feels nothing. Mixed precision multiplies gradients by a scale
    (65,536 at first): `unscale_` comes before the force, which would be that many times too weak otherwise.

        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.float16):
            loss = model(images).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for conv in convolutions:
            force = force_gradient(conv.weight, "Constant", groups=conv.groups)
            conv.weight.grad += weight_decay * conv.weight.detach() + force_decay * force
        scaler.step(optimizer)
        scaler.update()

    Raises ForceregError for an unknown type or view, a weight without rows, floating point or such a view, groups that
    do not divide them, or moments of another shape or beside another view.

    >>> import torch
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> forcereg.force_gradient(weight, "Constant")  # descent, which subtracts it, turns each row to the other
    tensor([[ 0.0000, -0.7071],
            [-0.7071,  0.0000]])
    """
    kernel_of: Kernel = registry.get(force_type)
    shape = weight.shape
    if weight.dim() < 2 or groups < 1 or shape[0] % groups:
        expected = f"two axes or more and a first axis divisible by groups = {groups}"
        raise ForceregError(f"force_gradient: weight of shape {tuple(shape)}; expected {expected}")
    if not weight.is_floating_point():
        raise ForceregError(f"force_gradient: weight of {weight.dtype}; expected floating point")
    if view not in VIEWS:
        hint = did_you_mean(view, VIEWS)
        raise ForceregError(f"force_gradient: unknown view {view!r}{hint} (known are {', '.join(VIEWS)})")
    if problem := misfit(view, shape):
        raise ForceregError(f"force_gradient: view {view} {problem}")
    metric = None if moments is None else _metric(moments, weight, groups, view)
    members = [Member(weight, torch.empty_like(weight), one, groups, moments=metric) for one in VIEWS[view]]
    # a row alone feels nothing, not even rounding
    members = [one for one in members if one.n > 1]
    for work in _works([Stack([one]) for one in members], kernel_of):
        work.compute()
    forces = [one.output for one in members]
    return sum(forces[1:], forces[0]) if forces else torch.zeros_like(weight)


def _metric(moments: Tensor, weight: Tensor, groups: int, view: str) -> Tensor:
    """Moments as the force takes them, for `force_gradient`."""
    k = weight[0].numel()
    if view != "FILTERS":
        raise ForceregError(f"force_gradient: moments are of filters, and view is {view}; expected FILTERS")
    if tuple(moments.shape) not in {(groups, k, k)} | ({(k, k)} if groups == 1 else set()):
        expected = f"({'' if groups == 1 else f'{groups}, '}{k}, {k})"
        raise ForceregError(f"force_gradient: moments of shape {tuple(moments.shape)}; expected {expected}")
    return normalised(moments.to(weight.device, torch.float64).reshape(groups, k, k))


def normalised(moments: Tensor) -> Tensor:
    """(groups, K, K) moments with 1 for the mean of each diagonal, so that norms are like those of weights."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return moments / mean.clamp(min=torch.finfo(torch.float64).tiny)


def check_force(
    force_type: str, decay_type: str = "fixed", direction: str = "all", where: str = "", metric: str = "weights"
) -> None:
    """Raise ForceregError, opened by `where`, listing the known names, unless all four solver strings are known."""
    registry.get(force_type, where)
    for field, found, known in (
        ("force_decay_type", decay_type, DECAY_TYPES),
        ("force_direction", direction, DIRECTIONS),
        ("force_metric", metric, METRICS),
    ):
        if found not in known:
            hint, prefix = did_you_mean(found, known), f"{where}: " if where else ""
            raise ForceregError(f"{prefix}unknown {field} {found!r}{hint} (known are {', '.join(known)})")


def apply_force(grad: Tensor, force: Tensor, factor: float | Tensor, decay_type: str, direction: str) -> None:
    """Add `force` to `grad` (which already holds weight decay), in place, by the solver's force settings.

    factor: force_decay * force_mult, a number or 0-d on the device; negative ones repel. Direction "same" drops the
    entries of the force whose sign opposes the gradient's; decay type "adaptive" takes `factor` as the ratio of the
    force's norm to the gradient's, and adds nothing where the force vanishes (Caffe's solver).
    """
    if direction == "same":
        force = torch.where(force * grad < 0, 0.0, force)
    if decay_type == "fixed":
        grad.addcmul_(force, factor) if isinstance(factor, Tensor) else grad.add_(force, alpha=factor)
        return
    size = torch.linalg.vector_norm(force)
    scale = factor * torch.linalg.vector_norm(grad) / size
    grad.addcmul_(force, torch.where(size < MIN_FORCE, 0.0, scale))


class ForceField:
    """The forces of a whole net's weights, computed together in kept buffers.

    The work per weight is small next to the cost of launching it, so matrices of one shape are multiplied
    together, and the n x n part is done for several at once: for those of one row count always, for others
    where padding (rows of zeros are skipped) costs less than another round of launches. `factors`: force_decay *
    force_mult per weight, 0 for none. `views`: each weight's view and groups (see lowrank.views); none: filters.
    `varies`: `set` will be called. `moments`: a kept metric for each weight, normalised (groups, K, K), by which each
    group's filters are then drawn together alone; none: the plain one. `apart`: each group's filters alone. Raises
    ForceregError for unknown strings.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[float],
        force_type: str = "Degradation",
        decay_type: str = "fixed",
        direction: str = "all",
        views: Sequence[tuple[str, int]] = (),
        varies: bool = False,
        moments: Mapping[int, Tensor] | None = None,
        apart: bool = False,
    ) -> None:
        check_force(force_type, decay_type, direction)
        self._settings = (decay_type, direction)
        self._simple = self._settings == ("fixed", "all")
        alike: dict[Hashable, list[Member]] = {}
        forces: dict[int, list[Tensor]] = {}
        for i, weight in enumerate(weights):
            view, groups = views[i] if views else ("FILTERS", 1)
            metric = (moments or {}).get(i)
            parts = unfoldings(view, groups, apart or metric is not None) if factors[i] and weight.dim() >= 2 else []
            for unfolding, own in parts:
                # a fixed force takes its factor along where it is rounded to float32; others need it bare
                factor = factors[i] if self._simple else 1.0
                one = Member(weight, torch.empty_like(weight), unfolding, own, factor, metric)
                if one.n > 1:
                    # row counts and lengths alike: one batched product for all of them
                    key = (one.n, one.k, one.inner, weight.device, None if metric is None else i)
                    alike.setdefault(key, []).append(one)
                    forces.setdefault(i, []).append(one.output)
        self._works = _works([Stack(same) for same in alike.values()], registry.get(force_type))
        self._chosen = list(forces)
        self._level, self._factors = 1.0, [factors[i] for i in self._chosen]
        # kept tensors, so that a graph reads what is set between its runs
        self._scales = [weights[i].new_tensor(factors[i]) for i in self._chosen] if varies else []
        self._forces = [parts[0] for parts in forces.values()]
        several = [parts for parts in forces.values() if len(parts) > 1]
        self._sums, self._addends = ([parts[place] for parts in several] for place in (0, 1))

    @torch.no_grad()
    def set(self, level: float) -> None:
        """All forces times `level`, a share of what they are, from here on: a few launches where it is another."""
        if level == self._level:
            return
        self._level = level
        if self._simple:
            for work in self._works:
                work.set(level)
        for scale, factor in zip(self._scales, self._factors, strict=True) if not self._simple else ():
            scale.fill_(factor * level)

    @torch.no_grad()
    def compute(self) -> None:
        """Work out every force from the weights as they are now, into kept outputs: reads nothing else."""
        for work in self._works:
            work.compute()
        if self._sums:
            torch._foreach_add_(self._sums, self._addends)

    @torch.no_grad()
    def add(self, grads: Sequence[Tensor]) -> None:
        """Add the forces last computed to the gradients (parallel to the weights given), in place."""
        chosen = [grads[i] for i in self._chosen]
        if self._simple:
            if chosen:
                torch._foreach_add_(chosen, self._forces)
            return
        factors: Sequence[float | Tensor] = self._scales or self._factors
        for grad, force, factor in zip(chosen, self._forces, factors, strict=True):
            apply_force(grad, force, factor, *self._settings)

    def add_to(self, grads: Sequence[Tensor]) -> None:
        """Compute every forced weight's force and add it to its gradient."""
        self.compute()
        self.add(grads)


def _works(stacks: Sequence[Stack], kernel_of: Kernel) -> list[Sums] | list[Pairs]:
    """What computes the forces of all stacks, those with similar row counts together."""
    if kernel_of is degradation:
        return [Sums(stack) for stack in stacks]
    together: list[list[Stack]] = []
    # largest first: what joins a pass is padded to its first one's rows, never the other way round
    for stack in sorted(stacks, key=lambda stack: -stack.rows.shape[1]):
        for others in together:
            same = others[0].rows.device == stack.rows.device and others[0].inner == stack.inner
            if same and _padding([*others, stack]) <= WASTE[stack.kind]:
                others.append(stack)
                break
        else:
            together.append([stack])
    return [Pairs(others, kernel_of) for others in together]


def _padding(stacks: Sequence[Stack]) -> int:
    """Entries that are only there to make all Gram matrices as large as the first stack's."""
    largest = stacks[0].rows.shape[1] ** 2
    return sum(len(stack.rows) * (largest - stack.rows.shape[1] ** 2) for stack in stacks)
