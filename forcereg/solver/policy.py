"""Learning rate policies: solver settings, iteration and current_step -> rate (Caffe's formulas).

Only multistep and step have a current_step; `advance` moves it, so that resuming restores a number. Beyond Caffe are
cosine (Loshchilov and Hutter, arXiv:1608.03983) and onecycle (Smith and Topin, arXiv:1708.07120), both with the numbers
of PyTorch's schedulers of these names, and a warm-up of any policy (Goyal et al., arXiv:1706.02677).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from forcereg.errors import ForceregError
from forcereg.registry import lr_policy


def problems(p: Any, name: str) -> Iterator[ForceregError]:
    """What keeps a policy from running; `name` is the solver's file."""
    try:
        if not p.lr_policy:
            raise ForceregError(f'{name}: lr_policy is missing; set one, for example lr_policy: "fixed"')
        lr_policy.get(p.lr_policy, name)
    except ForceregError as error:
        yield error
    if not p.HasField("base_lr"):
        yield ForceregError(f"{name}: base_lr is missing; set the learning rate, for example base_lr: 0.01")
    if p.lr_policy in ("step", "sigmoid") and p.stepsize <= 0:
        yield ForceregError(f'{name}: stepsize is {p.stepsize}; lr_policy "{p.lr_policy}" needs stepsize > 0')
    if p.lr_policy in ("step", "exp", "inv", "multistep") and p.gamma < 0:
        yield ForceregError(f"{name}: gamma is {p.gamma:g}; expected >= 0")
    if p.lr_policy in ENDING and p.max_iter <= 0:
        found = f"is {p.max_iter}" if p.HasField("max_iter") else "is missing"
        yield ForceregError(f'{name}: max_iter {found}; lr_policy "{p.lr_policy}" {ENDING[p.lr_policy]}')
    for text in _problems_beyond_caffe(p):
        yield ForceregError(f"{name}: {text}")


ENDING = {
    "poly": "falls to 0 at max_iter",
    "cosine": "falls to eta_min at max_iter",
    "onecycle": "rises and falls over max_iter iterations",
}
"""Policies that need a max_iter, and why."""
ONLY_OF = {"eta_min": "cosine", **dict.fromkeys(("pct_start", "div_factor", "final_div_factor"), "onecycle")}
"""Field -> the only policy that looks at it."""


def _problems_beyond_caffe(p: Any) -> Iterator[str]:
    if p.warmup_iter < 0:
        yield f"warmup_iter is {p.warmup_iter}; expected a number of iterations, 0 for none"
    if p.warmup_iter and p.lr_policy == "onecycle":
        yield (
            f'warmup_iter is {p.warmup_iter}, but lr_policy "onecycle" rises by itself, over the share pct_start (it '
            f"is {p.pct_start:g}) of max_iter; remove one of them"
        )
    if p.HasField("warmup_start_lr") and not 0 <= p.warmup_start_lr <= p.base_lr:
        yield f"warmup_start_lr is {p.warmup_start_lr:g}; expected a rate from 0 to base_lr (it is {p.base_lr:g})"
    if p.lr_policy == "cosine" and not 0 <= p.eta_min <= p.base_lr:
        yield f"eta_min is {p.eta_min:g}; expected a rate from 0 to base_lr (it is {p.base_lr:g})"
    if p.lr_policy == "onecycle":
        if not 0 <= p.pct_start <= 1:
            yield f"pct_start is {p.pct_start:g}; expected a share of max_iter, from 0 to 1"
        for field in ("div_factor", "final_div_factor"):
            if getattr(p, field) < 1:
                yield f"{field} is {getattr(p, field):g}; expected a divisor of 1 or more"


def idle(p: Any) -> Iterator[str]:
    """Settings of warm-up, cosine and onecycle that do nothing, or not what they are for."""
    for field, policy in ONLY_OF.items():
        if p.HasField(field) and p.lr_policy != policy:
            yield f'lr_policy "{p.lr_policy}" doesn\'t look at {field}; "{policy}" does'
    if p.HasField("warmup_start_lr") and not p.warmup_iter:
        yield "warmup_start_lr is of a warm-up, and there is none; set warmup_iter, its iterations"
    if 0 < p.max_iter <= p.warmup_iter:
        yield f"the rate still rises at the end: warmup_iter is {p.warmup_iter}, max_iter {p.max_iter}"


def runaways(p: Any) -> Iterator[str]:
    """Settings by which weights grow whatever the gradients are, and what to do."""
    if p.base_lr < 0:
        yield f"base_lr is {p.base_lr:g}: a negative rate makes the loss grow; set it above 0"
    if p.momentum >= 1:
        yield f"momentum is {p.momentum:g}: from 1 on updates grow by themselves; set it below 1, as in momentum: 0.9"
    if p.weight_decay < 0:
        yield f"weight_decay is {p.weight_decay:g}: a negative one makes weights grow; set it to 0 or more"
    if p.type in ("SGD", "Nesterov") and p.base_lr * p.weight_decay > 2:
        yield (
            f"weight_decay is {p.weight_decay:g}: times base_lr (it is {p.base_lr:g}) it takes more from the weights "
            "than they have, which clip_gradients can't bound; lower weight_decay"
        )


def rate(p: Any, iteration: int, current_step: int) -> float:
    """The learning rate of `iteration`, infinite if it is beyond all numbers; call after `advance` of the iteration."""
    try:
        return warmth(p, iteration) * lr_policy.get(p.lr_policy)(p, iteration, current_step)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def warmth(p: Any, iteration: int) -> float:
    """The share of its policy's rate that an iteration has, from 0 to 1: it rises over warmup_iter iterations."""
    if iteration >= p.warmup_iter:
        return 1.0
    start = 1 / p.warmup_iter
    if p.HasField("warmup_start_lr") and p.base_lr:
        start = p.warmup_start_lr / p.base_lr
    return start + (1 - start) * iteration / p.warmup_iter


def highest(p: Any) -> tuple[int, float]:
    """Of the beginning and the ends of rises before max_iter: the iteration with the highest rate, and that rate."""
    turns = {0, p.warmup_iter, round(_top(p)) if p.lr_policy == "onecycle" else 0}
    found = {at: rate(p, at, reached(p, at)) for at in sorted(turns) if at < max(1, p.max_iter)}
    return max(found.items(), key=lambda one: one[1])


def advance(p: Any, iteration: int, current_step: int) -> int:
    """current_step as of `iteration`: multistep takes at most one step per iteration."""
    if p.lr_policy == "step":
        return iteration // p.stepsize
    if p.lr_policy == "multistep" and current_step < len(p.stepvalue) and iteration >= p.stepvalue[current_step]:
        return current_step + 1
    return current_step


def reached(p: Any, iteration: int, current_step: int = 0) -> int:
    """current_step as of `iteration` in a run from the start, or from that `current_step` on, by `advance`."""
    if p.lr_policy != "multistep":
        return advance(p, iteration, current_step)
    # from one stepvalue to the next, not iteration by iteration: there may be millions
    at = 0
    while current_step < len(p.stepvalue) and (at := max(at, p.stepvalue[current_step])) <= iteration:
        current_step = advance(p, at, current_step)
        at += 1
    return current_step


def catch_up(p: Any, iteration: int, current_step: int) -> int:
    """current_step on resuming at `iteration`: at least what a run from the start would have there.

    So a state without it, or edited stepvalues, don't catch up one step per iteration at too high a rate.
    """
    # Caffe's states have it, too; it may be ahead where stepvalues have been moved back, and then stays
    return max(current_step, reached(p, iteration - 1)) if p.lr_policy == "multistep" else current_step


@lr_policy("fixed")
def fixed(p: Any, iteration: int, current_step: int) -> float:
    """base_lr"""
    return p.base_lr


@lr_policy("step")
def step(p: Any, iteration: int, current_step: int) -> float:
    """base_lr * gamma ^ floor(iteration / stepsize)"""
    return p.base_lr * p.gamma ** (iteration // p.stepsize)


@lr_policy("exp")
def exp(p: Any, iteration: int, current_step: int) -> float:
    """base_lr * gamma ^ iteration"""
    return p.base_lr * p.gamma**iteration


@lr_policy("inv")
def inv(p: Any, iteration: int, current_step: int) -> float:
    """base_lr * (1 + gamma * iteration) ^ -power"""
    return p.base_lr * (1 + p.gamma * iteration) ** -p.power


@lr_policy("multistep")
def multistep(p: Any, iteration: int, current_step: int) -> float:
    """base_lr * gamma ^ current_step"""
    return p.base_lr * p.gamma**current_step


@lr_policy("poly")
def poly(p: Any, iteration: int, current_step: int) -> float:
    """base_lr * (1 - iteration / max_iter) ^ power; 0 behind max_iter, where the power has no real value"""
    return p.base_lr * max(0.0, 1 - iteration / p.max_iter) ** p.power


@lr_policy("sigmoid")
def sigmoid(p: Any, iteration: int, current_step: int) -> float:
    """base_lr / (1 + exp(-gamma * (iteration - stepsize)))"""
    exponent = -p.gamma * (iteration - p.stepsize)
    return p.base_lr / (1 + math.exp(exponent)) if exponent < 700 else 0.0  # exp would overflow


@lr_policy("cosine")
def cosine(p: Any, iteration: int, current_step: int) -> float:
    """eta_min + (base_lr - eta_min) * (1 + cos(pi * iteration / max_iter)) / 2; eta_min behind max_iter"""
    return _eased(p.base_lr, p.eta_min, iteration / p.max_iter)


@lr_policy("onecycle")
def onecycle(p: Any, iteration: int, current_step: int) -> float:
    """A half cosine up from base_lr / div_factor to base_lr, at pct_start * max_iter - 1, and one down to the last.

    Iteration max_iter - 1 has base_lr / div_factor / final_div_factor, and so have those behind it. Momentum stays.
    """
    top, last, first = _top(p), p.max_iter - 1, p.base_lr / p.div_factor
    if iteration < top:
        return _eased(first, p.base_lr, iteration / top)
    return _eased(p.base_lr, first / p.final_div_factor, (iteration - top) / (last - top) if last > top else 0.0)


def _top(p: Any) -> float:
    """Where onecycle is at its highest; needn't be a whole iteration."""
    return max(0.0, p.pct_start * p.max_iter - 1)


def _eased(start: float, end: float, share: float) -> float:
    """From `start` to `end`, by half a cosine; `share` of the way, 1 if it is more."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
