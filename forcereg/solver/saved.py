"""What a state's `extra` may hold: one description, with which all of it is compared before any is taken over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from forcereg.net.module import Net
from forcereg.snapshot import WEIGHTS, damaged
from forcereg.solver.state import feeds

HISTORY = "history"
"""The entry that says what the state's history is."""
CLIPPED = "clipped"
"""The entry that holds the iteration at which ranks were last looked at."""
REGULARIZERS = "regularizers"
"""The entry of what regularizers carry, by their names."""
MASKS = "masks"
"""The entry of the masks on weights' updates."""
WATCH = "watch"
"""The entry of what is known of the ranks of forced layers."""
PRUNING = "pruning"
"""The entry of what a pruning has decided."""
AVERAGE = "average"
"""The entry of the averaged weights."""
SCALE = "scale"
"""The entry of the loss scale."""
ROLLBACKS = "rollbacks"
"""The entry of how often a run went back."""
BEST = "best"
"""The entry of the best test so far."""
GRADIENTS = "gradients"
"""The entry of how ranks average gradients, and of what each needs to go on with that."""


class Form(NamedTuple):
    """A kind of values: its name in errors, and whether a value is of it."""

    name: str
    fits: Callable[[Any], bool]


def _whole(least: int, most: int) -> Form:
    return Form(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def _is_generator(value: Any) -> bool:
    try:
        torch.Generator().set_state(torch.from_numpy(np.array(value)))
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def _is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64)


TEXT = Form("a text", lambda value: isinstance(value, str))
COUNT = _whole(0, (1 << 62) - 1)
SEED = _whole(0, (1 << 63) - 1)
GENERATOR = Form("the state of a generator of random numbers", _is_generator)
MEMBERS = Form("a group", lambda value: isinstance(value, Mapping))
_BYTES = Form("16 bytes", lambda v: isinstance(v, np.ndarray) and v.dtype == np.uint8 and v.shape == (16,))
_VALUES = Form("finite floats", lambda value: _is_floats(value) and bool(np.isfinite(value).all()))
_MASK = Form(
    "zeros and ones (uint8)", lambda v: isinstance(v, np.ndarray) and v.dtype == np.uint8 and bool((v <= 1).all())
)
_ROW = Form("a row of floats", lambda value: _is_floats(value) and value.ndim == 1)
_FINITE = Form("a finite number", lambda v: type(v) is float and math.isfinite(v))
_POSITIVE = Form("a number, 0 or more", lambda v: type(v) is float and v >= 0)
_FACTOR = Form("a positive float32", lambda v: type(v) is float and 0 < v <= torch.finfo(torch.float32).max)
_RANDOM = {"cpu": GENERATOR, "?cuda": _BYTES}
_CARRIED = {"*": {"*": _VALUES}}
_EXTRA: Mapping[str, Any] = {
    "feeds": {"*": {"name": TEXT, "state": MEMBERS}},
    "?carried": _CARRIED,  # not in a state of the first versions
    "random": _RANDOM,
    "losses": _ROW,
    "loss_count": COUNT,
    "?ranks": {"*": {"carried": _CARRIED, "random": _RANDOM}},
    f"?{SCALE}": {"scale": _FACTOR, "good": _whole(0, (1 << 31) - 1), "skipped": COUNT},
    f"?{HISTORY}": TEXT,
    f"?{WEIGHTS}": _whole(0, (1 << 32) - 1),
    f"?{REGULARIZERS}": {"*": {"*": _VALUES}},
    f"?{MASKS}": {"*": _MASK},
    f"?{WATCH}": {
        **dict.fromkeys(("at", "since", "still", "stalled"), COUNT),
        **{key: {"*": COUNT} for key in ("first", "ranks", "collapsed")},
    },
    f"?{PRUNING}": {
        "at": _whole(-1, (1 << 31) - 1),
        "decided": {"*": TEXT},
        "left": {"*": _POSITIVE},
        "still": {"*": COUNT},
        "cuts": {"*": _POSITIVE},
    },
    f"?{GRADIENTS}": {
        "scheme": TEXT,
        "?ranks": {
            "*": {
                **{"?cpu": GENERATOR, "?cuda": _BYTES, "?iteration": COUNT},
                **{key: {"*": _VALUES} for key in ("?error", "?p", "?q")},
            }
        },
    },
    f"?{AVERAGE}": {"since": _whole(-1, (1 << 31) - 1), "blobs": {"*": _VALUES}},
    f"?{CLIPPED}": _whole(-1, (1 << 31) - 1),
    f"?{ROLLBACKS}": {"done": COUNT, "factor": _FACTOR},
    f"?{BEST}": {"output": TEXT, "value": _FINITE, "iteration": _whole(-1, (1 << 31) - 1), "since": COUNT},
}
"""The form of each entry; those with "?" may be missing, "*" is any name. Others are a later version's, and ignored."""


def check_extra(path: Path, extra: Mapping[str, Any] | None, nets: Mapping[str, Net]) -> None:
    """Raises Damaged, about a state's file, for an entry that is missing or isn't what it should be.

    `nets`: those that will go on from the state. A layer that the state doesn't know, or of another type, is no damage.
    """
    if extra is None:
        return
    _compare(path, extra, _EXTRA)
    # their form is what the layer itself has now, by types and shapes
    known = feeds(nets)
    for number, entry in extra["feeds"].items():
        if (feed := known.get(entry["name"])) is not None:
            form = {f"?{key}": _like(key, value) for key, value in feed.state_dict().items()}
            _compare(path, entry["state"], form, ("feeds", number, "state"))


def _compare(path: Path, found: Any, form: Any, where: Sequence[str] = ()) -> None:
    """Raises Damaged if `found` isn't of the form: a Form, or a mapping as `_EXTRA`."""
    if isinstance(form, Form):
        if not form.fits(found):
            raise damaged(path, f"{'/'.join(where)} is {_text(found)}, expected {form.name}")
        return
    if not isinstance(found, Mapping):
        raise damaged(path, f"{'/'.join(where)} is {_text(found)}, expected a group")
    for key, part in form.items():
        name = key.removeprefix("?")
        if name not in found and name == key != "*":
            raise damaged(path, f"it lacks {'/'.join((*where, name))}")
        for one in found if key == "*" else {name} & found.keys():
            _compare(path, found[one], part, (*where, one))


def _like(key: str, own: Any) -> Any:
    """The form of an entry of a feed's state, of which `own` is the present one."""
    if isinstance(own, Mapping):
        return {f"?{name}": _like(name, value) for name, value in own.items()}
    if isinstance(own, str):
        return TEXT
    # bool before int, of which it is a kind
    if isinstance(own, bool | float):
        return Form(f"a {type(own).__name__}", lambda value: type(value) is type(own) and math.isfinite(value))
    if isinstance(own, int):
        return SEED if key == "seed" else COUNT
    array = np.asarray(own)
    if array.dtype == np.uint8 and _is_generator(array):
        return GENERATOR
    return Form(
        f"{array.dtype} in shape {list(array.shape)}",
        lambda v: isinstance(v, np.ndarray) and (v.dtype, v.shape) == (array.dtype, array.shape),
    )


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} in shape {list(value.shape)}"
    return "a group" if isinstance(value, Mapping) else f"{value!r:.60}"
