"""Learning rate policies: solver settings, iteration and current_step -> rate (Caffe's formulas).

Only multistep and step have a current_step; `advance` moves it, so that resuming restores a number.
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
    if p.lr_policy == "poly" and p.max_iter <= 0:
        yield ForceregError(f'{name}: max_iter is missing; lr_policy "poly" falls to 0 at max_iter')


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
        return lr_policy.get(p.lr_policy)(p, iteration, current_step)
    except (OverflowError, ZeroDivisionError):
        return math.inf


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
