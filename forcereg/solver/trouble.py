"""Why a loss or a weight may have stopped being finite: looked for when it has happened, never before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.schema.scan import shown
from forcereg.solver import policy
from forcereg.solver.passes import Inputs, fed
from forcereg.solver.pull import Pull
from forcereg.solver.run import Run

if TYPE_CHECKING:
    from forcereg.data.feed import Feed
    from forcereg.layers import Layer
    from forcereg.schema.spec import LayerSpec

LOOKED_AT = 100_000
"""Records of a source that are looked at, however few of them have been used."""


DATA = "the data isn't finite: "


class NotFinite(ForceregError):
    """Training came to a loss or a weight that isn't finite: a matter of this run's settings, not of where it runs.

    `curable`: whether a lower rate from an earlier snapshot on may help.
    """

    def __init__(self, text: str = "", curable: bool = True) -> None:
        super().__init__(text)
        self.curable = curable


def not_finite(name: str, what: str, last: Path | None, change: str, curable: bool = True) -> NotFinite:
    """The error, opened by `name`, for `what` isn't finite; `last`: the last model that was saved, `change`: advice."""
    saved = f"the last good snapshot is {last}" if last else "there is no snapshot yet"
    return NotFinite(f"{name}: {what}; {saved}; {change}", curable and not change.startswith(DATA))


def advice(run: Run, net: Net, inputs: Inputs, bad: int, force: Pull | None) -> str:
    """What to change, as far as can be known, behind the first iteration `bad` that wasn't finite.

    `net` was trained on `inputs` or its own data; `force`: how large it was, None if none acted the iteration before.
    """
    p = run.param
    if found := _in_data(run, net, inputs, bad):
        return f"{DATA}{found}; correct it or leave it out"
    layers = dict.fromkeys(one.layer for one in net.learnable if not one.blob.isfinite().all())
    if layers and bad == 0:
        return f"the weights that it began with are not finite in {', '.join(layers)}; load others"
    if bad == 0:
        first = _in_layers(run, net, inputs, bad)
        look = f"{first}; look at what it is given, " if first else "look at "
        return f"no update came before, so it isn't base_lr or a force: {look}the data's scale and the fillers"
    # settings by which weights grow whatever the gradients are explain it before the rate does
    if own := next(policy.runaways(p), None):
        return own
    clip = "clip_gradients" if p.clip_gradients > 0 else "set clip_gradients"
    if force is None:
        return f"lower base_lr or {clip}"
    ratio = force.last
    known = "" if ratio is None or not math.isfinite(ratio) else f", last {ratio:.3g} times as large as the gradient"
    return (
        f"lower force_decay or base_lr; clip_gradients can't bound the force (force_decay {p.force_decay:g}{known}), "
        "which comes behind the clipping"
    )


def _in_data(run: Run, net: Net, inputs: Inputs, bad: int) -> str | None:
    """Where the first value that isn't finite is in what the training net was fed; None if none is found."""
    p = run.param
    if inputs is not None:
        for sub in range(p.iter_size):
            blobs = fed(net, inputs, bad, sub, torch.device("cpu"), True) or {}
            for name, values in blobs.items():
                if not values.isfinite().all():
                    return f"input '{shown(name)}' of iteration {bad}"
    for name, feed in net.feeds.items():
        batch = feed.shapes[0][0] if feed.shapes and feed.shapes[0] else 1
        # all ranks' records up to then, each read once and in order
        used = (bad + 1) * batch * p.iter_size * run.group.size
        try:
            if found := feed.find_nonfinite(max(used, LOOKED_AT)) or _in_batch(name, feed):
                return found
        except ForceregError:  # what can't be read now is no reason
            continue
    return None


def _in_layers(run: Run, net: Net, inputs: Inputs, bad: int) -> str:
    """The first layer whose output isn't finite in a pass with the weights as they are; '' if there is none."""
    found = list[str]()

    def watched(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        tops = module(*bottoms)
        for name, top in zip(spec.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=True):
            if not top.isfinite().all():
                found.append(f"blob '{shown(name)}' of layer '{shown(spec.name)}' ({spec.type}) is the first")
        return tops

    # layer by layer, and the data goes back to where it stood: the error may be caught and the run go on
    around, net.around = net.around, watched
    states = {name: feed.state_dict() for name, feed in net.feeds.items()}
    try:
        with torch.no_grad():
            net(fed(net, inputs, bad, 0, run.device, True))
    except ForceregError:  # what can't run now tells nothing
        pass
    finally:
        net.around = around
        for name, feed in net.feeds.items():
            feed.load_state_dict(states[name])
    return found[0] if found else ""


def _in_batch(name: str, feed: Feed) -> str | None:
    """The same in the coming batch: a mean or a scale may have spoilt what is finite in the source."""
    state: dict[str, Any] = feed.state_dict()
    try:
        batch = feed.next()
    finally:
        feed.load_state_dict(state)
    for top, values in zip(feed.tops, batch, strict=True):
        if not values.isfinite().all():
            return f"blob '{shown(top)}' of layer '{shown(name)}'"
    return None
