"""Force regularization: the force that Caffe's solver adds to the gradient of a weight.

Every filter w_i (row of a weight, of norm l_i and direction u_i) is pulled towards every other one:

    G_i = l_i * sum_j K_ij ((u_i . u_j) u_i - u_j)        K_ij = |u_i - u_j| ** -p

that is, minus the part of the pull sum_j K_ij u_j that is tangent to the sphere at u_i: descending along G
makes filters alike. Wen et al., "Coordinating Filters for Faster Deep Neural Networks" (ICCV 2017), section 3;
the thresholds are Caffe's on the CPU.

A force type is one function: squared distances |u_i - u_j|^2 in, K out. All runs in float64, because near
duplicates cancel (|u_i - u_j|^2 = 2 - 2 u_i . u_j). The filters themselves are touched by two matrix products
only, half of the first one being mirrored; the rest works on the n x n Gram matrix, some rows at a time. Where
K = 1 the sum of all u_j is enough. Nothing is read back to the host, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.registry import force_type as registry

Kernel = Callable[[Tensor], Tensor]
"""Squared distances (count, rows, n) float64, which it may overwrite -> K, of that shape."""

MIN_NORM = 1e-4  # a shorter row neither feels nor exerts a force
MIN_DISTANCE = 1e-4  # a pair nearer than this has no force, except in Degradation
MIN_FORCE = 1e-8  # "adaptive" leaves a weight alone whose whole force is smaller than this

BLOCK = {"cpu": 256, "cuda": 1024}
"""Rows at a time: so few that a block's n x n part stays in the cache, so many that products run at full speed."""

WASTE = {"cpu": 8_000, "cuda": 200_000}
"""Entries of padding that cost about as much as launching the n x n part once more."""

DECAY_TYPES = ("fixed", "adaptive")
DIRECTIONS = ("all", "same")


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


@torch.no_grad()
def force_gradient(weight: Tensor, force_type: str = "Degradation", groups: int = 1) -> Tensor:
    """The force on `weight`, to be scaled by force_decay * force_mult and added to its gradient.

    weight: two axes or more, its rows along axis 0; the result has its shape, dtype and memory layout.
    With `groups` > 1 each block of rows is coordinated alone (Caffe's fork coordinates all together). In a training
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

    Raises ForceregError for an unknown type, a weight without rows, or groups that do not divide them.

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
    if shape[0] == groups:  # a row alone feels nothing, not even rounding
        return torch.zeros_like(weight)
    force = torch.empty_like(weight)
    for work in _works([_Stack(weight.chunk(groups), force.chunk(groups), [1.0] * groups)], kernel_of):
        work.compute()
    return force


def memory_order(weight: Tensor) -> list[int]:
    """Axis 0, then the others from outermost to innermost in memory.

    The order of a row's entries is free, and flattening a dense weight in this order copies nothing.
    """
    return [0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True)]


def inverse_of(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


def check_force(force_type: str, decay_type: str = "fixed", direction: str = "all", where: str = "") -> None:
    """Raise ForceregError, opened by `where`, listing the known names, unless all three solver strings are known."""
    registry.get(force_type, where)
    for field, found, known in (
        ("force_decay_type", decay_type, DECAY_TYPES),
        ("force_direction", direction, DIRECTIONS),
    ):
        if found not in known:
            hint, prefix = did_you_mean(found, known), f"{where}: " if where else ""
            raise ForceregError(f"{prefix}unknown {field} {found!r}{hint} (known are {', '.join(known)})")


def apply_force(grad: Tensor, force: Tensor, factor: float, decay_type: str, direction: str) -> None:
    """Add `force` to `grad` (which already holds weight decay), in place, by the solver's force settings.

    factor: force_decay * force_mult; negative ones repel. Direction "same" drops the entries of the force
    whose sign opposes the gradient's; decay type "adaptive" takes `factor` as the ratio of the force's norm
    to the gradient's, and adds nothing where the force vanishes (Caffe's solver).
    """
    if direction == "same":
        force = torch.where(force * grad < 0, 0.0, force)
    if decay_type == "fixed":
        grad.add_(force, alpha=factor)
        return
    size = torch.linalg.vector_norm(force)
    scale = factor * torch.linalg.vector_norm(grad) / size
    grad.addcmul_(force, torch.where(size < MIN_FORCE, 0.0, scale))


class ForceField:
    """The forces of a whole net's weights, computed together in kept buffers.

    The work per weight is small next to the cost of launching it, so weights of one shape are multiplied
    together, and the n x n part is done for several at once: for those of one row count always, for others
    where padding (rows of zeros are skipped) costs less than another round of launches. `factors`: force_decay *
    force_mult per weight, 0 for none. Raises ForceregError for unknown strings.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[float],
        force_type: str = "Degradation",
        decay_type: str = "fixed",
        direction: str = "all",
    ) -> None:
        check_force(force_type, decay_type, direction)
        self._settings = (decay_type, direction)
        self._simple = self._settings == ("fixed", "all")
        alike: dict[Hashable, list[int]] = {}
        for i, weight in enumerate(weights):
            if factors[i] and weight.dim() >= 2 and weight.shape[0] > 1:
                # row counts and lengths alike: one batched product for all of them
                alike.setdefault((len(weight), weight[0].numel(), weight.device), []).append(i)
        stacks = []
        for same in alike.values():
            chosen = [weights[i] for i in same]
            # a fixed force takes its factor along where it is rounded to float32; others need it bare
            scales = [factors[i] if self._simple else 1.0 for i in same]
            stacks.append(_Stack(chosen, [torch.empty_like(weight) for weight in chosen], scales))
        self._works = _works(stacks, registry.get(force_type))
        self._chosen = [i for same in alike.values() for i in same]
        self._factors = [factors[i] for i in self._chosen]
        self._forces = [force for stack in stacks for force in stack.outputs]

    @torch.no_grad()
    def compute(self) -> None:
        """Work out every force from the weights as they are now, into kept outputs: reads nothing else."""
        for work in self._works:
            work.compute()

    @torch.no_grad()
    def add(self, grads: Sequence[Tensor]) -> None:
        """Add the forces last computed to the gradients (parallel to the weights given), in place."""
        chosen = [grads[i] for i in self._chosen]
        if self._simple:
            if chosen:
                torch._foreach_add_(chosen, self._forces)
            return
        for grad, force, factor in zip(chosen, self._forces, self._factors, strict=True):
            apply_force(grad, force, factor, *self._settings)

    def add_to(self, grads: Sequence[Tensor]) -> None:
        """Compute every forced weight's force and add it to its gradient."""
        self.compute()
        self.add(grads)


def _works(stacks: Sequence[_Stack], kernel_of: Kernel) -> list[_Sums] | list[_Pairs]:
    """What computes the forces of all stacks, those with similar row counts together."""
    if kernel_of is degradation:
        return [_Sums(stack) for stack in stacks]
    together: list[list[_Stack]] = []
    # largest first: what joins a pass is padded to its first one's rows, never the other way round
    for stack in sorted(stacks, key=lambda stack: -stack.rows.shape[1]):
        for others in together:
            if others[0].rows.device == stack.rows.device and _padding([*others, stack]) <= WASTE[stack.kind]:
                others.append(stack)
                break
        else:
            together.append([stack])
    return [_Pairs(others, kernel_of) for others in together]


def _padding(stacks: Sequence[_Stack]) -> int:
    """Entries that are only there to make all Gram matrices as large as the first stack's."""
    largest = stacks[0].rows.shape[1] ** 2
    return sum(len(stack.rows) * (largest - stack.rows.shape[1] ** 2) for stack in stacks)


class _Stack:
    """Weights of one row count n and row length k: their float64 rows (count, n, k), and where their forces go."""

    def __init__(self, weights: Sequence[Tensor], outputs: Sequence[Tensor], factors: Sequence[float]) -> None:
        self._weights, self.outputs = list(weights), outputs  # not detached: somebody may replace their `data`
        n, first = len(weights[0]), weights[0]
        self.kind = "cpu" if first.device.type == "cpu" else "cuda"  # of BLOCK and WASTE
        self.rows = first.new_empty((len(weights), n, first[0].numel()), dtype=torch.float64)
        self.factors = self.rows.new_tensor(factors)
        self._inputs = [_shaped_like(one, rows) for one, rows in zip(outputs, self.rows, strict=True)]
        # all parts of a stack write to one buffer in turn, so that it stays in the cache
        step = min(n, BLOCK[self.kind])
        pulls = torch.empty_like(self.rows[:, :step])
        self.parts = [_Part(self, slice(start, min(start + step, n)), pulls) for start in range(0, n, step)]

    def load(self) -> None:
        """Take the weights as they are now."""
        torch._foreach_copy_(self._inputs, self._weights)


class _Part:
    """Some rows of a stack, and a buffer for their forces, both (count, rows, k)."""

    def __init__(self, stack: _Stack, span: slice, pulls: Tensor) -> None:
        self.span, self.rows = span, stack.rows[:, span]
        self.pulls = pulls[:, : span.stop - span.start]
        self._outputs = [output[span] for output in stack.outputs]
        self._results = [_shaped_like(one, pull) for one, pull in zip(self._outputs, self.pulls, strict=True)]

    def store(self) -> None:
        """Round the forces into the outputs."""
        torch._foreach_copy_(self._outputs, self._results)


class _Sums:
    """The forces of a stack where K = 1: with S = sum_j u_j, G_i = l_i ((u_i . S) u_i - S)."""

    def __init__(self, stack: _Stack) -> None:
        self._stack, self._scale = stack, stack.factors.reshape(-1, 1, 1)
        self._norm, self._inverse, self._along = stack.rows.new_empty((3, *stack.rows.shape[:2], 1))
        self._sum = torch.empty_like(stack.rows[:, :1])

    def compute(self) -> None:
        """Fill the outputs."""
        stack, norm, inverse, along, total = self._stack, self._norm, self._inverse, self._along, self._sum
        stack.load()
        torch.linalg.vector_norm(stack.rows, dim=-1, keepdim=True, out=norm)
        # 1 / inf = 0 takes short rows out without a mask or a branch on their number
        torch.threshold(norm, MIN_NORM, inf, out=inverse).reciprocal_()
        # S, with the factor: the rows are never divided by their norms, which would be a pass over all
        torch.bmm(inverse.mT, stack.rows, out=total).mul_(self._scale)
        torch.bmm(stack.rows, total.mT, out=along).mul_(inverse)
        torch.threshold_(norm, MIN_NORM, 0)
        for part in stack.parts:
            torch.mul(part.rows, along[:, part.span], out=part.pulls)
            part.pulls.addcmul_(norm[:, part.span], total, value=-1)
            part.store()


class _Pairs:
    """The forces of stacks of similar row counts, by one zero-padded Gram matrix (n, n) a weight."""

    def __init__(self, stacks: Sequence[_Stack], kernel_of: Kernel) -> None:
        self.stacks, self.kernel_of = stacks, kernel_of
        self._minus = -torch.cat([stack.factors for stack in stacks]).unsqueeze(1)
        count, n = len(self._minus), stacks[0].rows.shape[1]  # the first has the most rows
        # zeros, once: nothing ever writes the padding, whose rows then count as too short
        self.gram = self._minus.new_zeros((count, n, n))
        self.inverse, self.inverse_squared, self.minus_norm = self.gram.new_empty((3, count, n))
        # a view: norms come with the products and cost no pass of their own
        self._squared_norm = self.gram.diagonal(dim1=-2, dim2=-1)
        spans = [part.span for part in stacks[0].parts]
        self.work = self.gram.new_empty((2, count, spans[0].stop, n))
        self._blocks = [_Block(self, index, span) for index, span in enumerate(spans)]

    def compute(self) -> None:
        """Fill the outputs."""
        for stack in self.stacks:
            stack.load()
        for block in self._blocks:
            block.multiply()
        torch.threshold(self._squared_norm, MIN_NORM**2, inf, out=self.inverse).rsqrt_()
        torch.mul(self.inverse, self.inverse, out=self.inverse_squared)
        torch.mul(self._squared_norm, self.inverse, out=self.minus_norm).mul_(self._minus)  # 0 for rows too short
        for block in self._blocks:
            block.pull()


class _Block:
    """The rows `span` of Gram matrices, and the forces on these rows."""

    def __init__(self, pairs: _Pairs, index: int, span: slice) -> None:
        self._kernel_of, self._gram = pairs.kernel_of, pairs.gram[:, span]
        self._inverse, self._inverse_row = pairs.inverse[:, span, None], pairs.inverse[:, None]
        self._inverse_squared, self._minus_norm = pairs.inverse_squared[:, span], pairs.minus_norm[:, span, None]
        self._mix, self._spare = pairs.work[:, :, : span.stop - span.start]
        self._diagonal = self._mix.diagonal(span.start, dim1=-2, dim2=-1)
        self._radial = torch.empty_like(self._inverse_squared)
        # a tensor, because addcmul takes no number in its place
        self._two = self._gram.new_tensor(2.0)
        self._mirror = (pairs.gram[:, span.stop :, span], self._gram[:, :, span.stop :].mT)
        self._grams: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pulls: list[tuple[Tensor, Tensor, _Part]] = []
        first = 0
        for stack in pairs.stacks:
            weights = slice(first, first := first + len(stack.rows))
            if index < len(stack.parts):
                part, n = stack.parts[index], stack.rows.shape[1]
                size = part.rows.shape[1]
                self._grams.append(
                    (part.rows, stack.rows[:, span.start :].mT, self._gram[weights, :size, span.start : n])
                )
                self._pulls.append((self._mix[weights, :size, :n], stack.rows, part))

    def multiply(self) -> None:
        """These rows of the Gram matrices from the diagonal on, and the columns that mirror them."""
        for rows, others, gram in self._grams:
            torch.bmm(rows, others, out=gram)
        below, right = self._mirror
        # the Gram matrix is symmetric: what lies left of the diagonal was computed by an earlier block
        if len(below[0]):
            below.copy_(right)

    def pull(self) -> None:
        """force = mix @ rows, where mix_ij = scale l_i (delta_ij sum_k K_ik u_i . u_k - K_ij) / l_j."""
        mix = torch.mul(self._inverse, self._inverse_row, out=self._mix)
        # |u_i - u_j|^2 = 2 - 2 u_i . u_j, in the buffer that the cosines are in
        kernel = self._kernel_of(torch.addcmul(self._two, self._gram, mix, value=-2, out=mix))
        torch.mul(kernel, self._minus_norm, out=mix).mul_(self._inverse_row)
        torch.sum(torch.mul(mix, self._gram, out=self._spare), -1, out=self._radial)
        self._diagonal.addcmul_(self._radial, self._inverse_squared, value=-1)
        for own, rows, part in self._pulls:
            torch.bmm(own, rows, out=part.pulls)
            part.store()


def _shaped_like(weight: Tensor, rows: Tensor) -> Tensor:
    """`rows` (n, k) as a view of `weight`'s shape, with the same order in memory."""
    order = memory_order(weight)
    return rows.view([weight.shape[axis] for axis in order]).permute(inverse_of(order))
