"""Which keywords of a training go together, and what each may be."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

from forcereg.errors import UsageError
from forcereg.system.paths import listed

Said = Callable[[str], str]
TEACHING = {"teacher": None, "teacher_model": None, "temperature": 4.0, "teacher_weight": 0.5}
"""The keywords of a teacher, and what they are without one."""
REPORT = "report"
"""In place of a scheme for gradients: all are measured, and nothing is trained."""
AVERAGING: dict[str, tuple[str, Any]] = {
    "clip_sigma": ("ternary", 2.5),
    "dense_layers": ("ternary", ()),
    "min_size": ("ternary", 1),
    "powersgd_rank": ("powersgd", 1),
    "powersgd_start": ("powersgd", 1000),
}
"""The keywords of schemes: whose they are, and what they are by themselves."""
_SCHEMES = ("dense", "bf16", "fp16", "powersgd", "ternary")
CHOICES = {
    "amp": ("bf16", "fp16"),
    "masks": ("stored", "rebuild"),
    **dict.fromkeys(("sigint_effect", "sighup_effect"), ("stop", "snapshot", "none")),
}


def check_start(snapshot: Any, resume: Any, weights: Any, said: Said = str) -> None:
    """Raises UsageError for two places to start from; `said`: what their keywords are called."""
    # resume and weights go together: models are for where there is no snapshot yet
    starts = [name for name, one in (("snapshot", snapshot), ("resume", resume), ("weights", weights)) if one]
    if snapshot and len(starts) > 1:
        why = "a snapshot brings its own weights" if weights else "both say where to go on"
        raise UsageError(f"{said('snapshot')} and {said(starts[1])} are both given; {why}, use one")


def check_find_batch(asked: bool, snapshot: Any, resume: Any, gradients: str, said: Said = str) -> None:
    """Raises UsageError for going on from a snapshot where nothing is trained, and for a report beside."""
    if asked and gradients == REPORT:
        raise UsageError(
            f"{said('find_batch')} and {said('gradients')} {REPORT} are both given; one looks for a batch by one "
            "process, the other measures several"
        )
    going = next((name for name, one in (("snapshot", snapshot), ("resume", resume)) if one), None)
    if asked and going:
        raise UsageError(
            f"{said('find_batch')} and {said(going)} are both given; looking for a batch trains nothing, and a run "
            "goes on with the batch that it had"
        )


def check_clipping(share: float | None, until: int | None, said: Said = str) -> None:
    """Raises UsageError for an end of no rank clipping, and for a share that isn't one."""
    name = said("rank_clipping")
    if until is not None and share is None:
        raise UsageError(f"{said('clip_until')} is about {name}, which isn't given; add it, as in {name} 0.99")
    if share is not None and not isinstance(share, SupportsFloat):
        raise UsageError(f"{name} is {share!r}; expected a share above 0, at most 1, as in {name} 0.99")
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"{name} is {share:g}; expected a share above 0, at most 1, as in {name} 0.99")


def check_teacher(given: Mapping[str, Any], said: Said = str) -> None:
    """Raises UsageError for what is said of no teacher, and for a temperature and a weight that are none."""
    # what is softened more is alike to float32: its divergence would be rounding
    for name, least, most, expected in (
        ("temperature", 0.001, 100, "a number from 0.001 to 100, as in 4"),
        ("teacher_weight", sys.float_info.min, 1, "a share above 0, at most 1, as in 0.5"),
    ):
        value = given[name]
        if not isinstance(value, SupportsFloat) or not least <= float(value) <= most:
            raise UsageError(f"{said(name)} is {value!r}; expected {expected}")
    for name, without in TEACHING.items() if given["teacher"] is None else ():
        if given[name] != without:
            raise UsageError(f"{said(name)} is of {said('teacher')}, which isn't given; add it")


def check_gradients(given: Mapping[str, Any], said: Said = str) -> None:
    """Raises UsageError for what is said of a scheme that isn't asked for, and for numbers that are none.

    `given`: `gradients`, `bandwidth` and the keywords of AVERAGING.
    """
    sigma, bandwidth, scheme = given["clip_sigma"], given["bandwidth"], given["gradients"]
    if not isinstance(sigma, SupportsFloat) or not 0 <= float(sigma) < math.inf:
        raise UsageError(f"{said('clip_sigma')} is {sigma!r}; expected a number of 0 (none) or more, as in 2.5")
    if bandwidth is not None and not 0 < float(bandwidth) < math.inf:
        raise UsageError(f"{said('bandwidth')} is {bandwidth!r}; expected bits a second above 0, as in 1e9")
    for name, (owner, own) in AVERAGING.items():
        value = tuple(listed(given[name])) if isinstance(own, tuple) else given[name]
        # a scheme of somebody's own may heed any
        if value != own and scheme in {*_SCHEMES} - {owner}:
            raise UsageError(f"{said(name)} is of {said('gradients')} {owner}, which is {scheme}; leave it out")
    if bandwidth is not None and scheme != REPORT:
        raise UsageError(f"{said('bandwidth')} is of {said('gradients')} {REPORT}, which is {scheme}; leave it out")


def check_choice(name: str, value: str | None) -> None:
    """Raises UsageError for none of a keyword's values."""
    if value is not None and value not in CHOICES[name]:
        raise UsageError(f"{name} is '{value}'; expected {', '.join(CHOICES[name])} or None")
