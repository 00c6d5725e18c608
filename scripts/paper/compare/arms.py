"""What is done to a net between its first training and the cut, one word an arm, as in `Degradation:1e-3:BOTH:half`.

none                        trained on as it was
TYPE:DECAY[:VIEW][:WHEN]    force: Constant, Degradation; FILTERS (the paper's), CHANNELS, BOTH, VERTICAL; held to
                            the end, or let go at `half`, at `three-quarters`, or `slowly` (between these)
TYPE:DECAY:responses[:WHEN] force in the metric of the layer's inputs
TYPE:DECAY:afresh           force in the first training, too, from the fillers
nuclear:STRENGTH[:WHEN]     the nuclear norm's proximal steps
exact:SHARE                 the ranks that pca takes at this share of the MACs, reached at half time and kept
clip:SHARE                  rank clipping of full chains, which keeps that share of each weight's squared norm
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

VIEWS = ("FILTERS", "CHANNELS", "BOTH", "VERTICAL")
WHEN = {"half": (0.5, 0.0), "three-quarters": (0.75, 0.0), "slowly": (0.75, 0.25)}
"""Where the force ends, and over which share before that it falls, as shares of the training."""


@dataclass(frozen=True)
class Arm:
    """An arm's word in parts."""

    word: str
    kind: str
    strength: float = 0.0
    view: str = "FILTERS"
    responses: bool = False
    when: str = ""
    afresh: bool = False

    @property
    def force(self) -> bool:
        """Whether it is a force."""
        return self.kind in ("Constant", "Degradation", "Linear", "Gravity", "adaptive")

    def fields(self, iterations: int) -> dict[str, Any]:
        """The solver fields of a training of that many iterations."""
        found: dict[str, Any] = {"force_decay": 0.0}
        if self.force:
            found = {"force_decay": self.strength, "force_type": self.kind}
            if self.kind == "adaptive":
                found |= {"force_type": "Degradation", "force_decay_type": "adaptive"}
            if self.responses:
                found["force_metric"] = "responses"
            if self.when:
                end, release = WHEN[self.when]
                found["force_iter"] = round(end * iterations)
                if release:
                    found["force_release"] = round(release * iterations)
        return found


def arm_of(word: str) -> Arm:
    """An arm by its word. Raises ValueError for another."""
    kind, *rest = word.split(":")
    if kind == "none" and not rest:
        return Arm(word, kind)
    if not rest:
        raise ValueError(f"{word}: expected {kind}:STRENGTH; see scripts/paper/compare/arms.py")
    try:
        arm = Arm(word, kind, float(rest[0]))
    except ValueError:
        raise ValueError(f"{word}: {rest[0]!r} is no strength; expected a number") from None
    for part in rest[1:]:
        if part in VIEWS:
            arm = replace(arm, view=part)
        elif part == "responses":
            arm = replace(arm, responses=True)
        elif part == "afresh":
            arm = replace(arm, afresh=True)
        elif part in WHEN:
            arm = replace(arm, when=part)
        else:
            raise ValueError(f"{word}: {part!r} is none of {', '.join((*VIEWS, 'responses', 'afresh', *WHEN))}")
    if not arm.force and arm.kind not in ("nuclear", "exact", "clip"):
        raise ValueError(f"{word}: {arm.kind!r} is no arm; see scripts/paper/compare/arms.py")
    if arm.afresh and not arm.force:
        raise ValueError(f"{word}: only a force can be there afresh")
    return arm
