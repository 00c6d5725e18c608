"""Which layers a net's state keeps, and for errors: which net that is, and why a rule leaves a layer out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forcereg.errors import ForceregError
from forcereg.schema import TEST, TRAIN, NetState
from forcereg.schema.scan import shown

PHASES = {"TRAIN": TRAIN, "TEST": TEST}
_NAMES = {number: name for name, number in PHASES.items()}


def phase_number(phase: str | int) -> int:
    """TRAIN or TEST, by name or number, as the schema's number; raises ForceregError otherwise."""
    if phase in (TRAIN, TEST):
        return int(phase)
    try:
        return PHASES[str(phase).upper()]
    except KeyError:
        raise ForceregError(f"unknown phase {phase!r}; expected TRAIN or TEST") from None


def stage_names(stages: str | Sequence[str]) -> tuple[str, ...]:
    """The stages that a text "a,b" or a sequence names, without empty ones."""
    return tuple(stage for stage in (stages.split(",") if isinstance(stages, str) else stages) if stage)


def net_state(phase: int, own: Any = None, *later: Any) -> Any:
    """The NetState that layer rules are matched against: phase, then the net's own, then the solver's.

    Later scalars override earlier ones; stages append. Empty stages are dropped (Caffe's command
    line adds one, which then fails every `stage` rule).
    """
    state = NetState(phase=phase)
    for other in (own, *later):
        if other is not None:
            state.MergeFrom(other)
    # behind the merge: any of the three may bring an empty one along
    kept = [stage for stage in state.stage if stage]
    del state.stage[:]
    state.stage.extend(kept)
    return state


def rule_matches(rule: Any, state: Any) -> bool:
    """Whether a NetStateRule matches; an empty rule does."""
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def included(message: Any, state: Any) -> bool:
    """Whether a layer's include rules keep it, or its exclude rules if it has no others."""
    if message.include:
        return any(rule_matches(rule, state) for rule in message.include)
    return not any(rule_matches(rule, state) for rule in message.exclude)


# -- for errors


@dataclass(frozen=True)
class Title:
    """What users call a net, and how they set its stages and level: by a solver's fields, or by options.

    `number`: of a solver's test net. `several`: others are built for the same run.
    """

    solver: bool = False
    number: int | None = None
    several: bool = False

    def name(self, state: Any) -> str:
        """'TEST net #1'."""
        number = "" if self.number is None else f" #{self.number}"
        return f"{_NAMES[state.phase]} net{number}"

    def full(self, state: Any) -> str:
        """'TEST net #1 (stage "a", level 2)'."""
        return f"{self.name(state)} ({said_state(state)})"

    def short(self, state: Any) -> str:
        """The same without a state that says nothing; '' for the only net of a run."""
        if not self.several:
            return ""
        return self.full(state) if state.stage or state.level else self.name(state)

    def setting(self, state: Any, stages: Sequence[str], level: int) -> str:
        """What to write so that the net has these stages and this level."""
        names = [shown(stage) for stage in stages]
        fields = [f'stage: "{name}"' for name in names] + [f"level: {level}"] * bool(level)
        written = f"{{ {' '.join(fields)} }}" if fields else "{ }"
        if self.solver and state.phase == TEST:
            return f"options are for the training net, for the test net write test_state {written}"
        added = names != list(state.stage)
        options = [f"--stage {','.join(names) or repr('')}"] * added + [f"--level {level}"] * (level != state.level)
        if self.solver:
            return f"give {' '.join(options)} or write train_state {written}"
        python = [f"stages={names}"] * added + [f"level={level}"] * (level != state.level)
        return f"give {' '.join(options)} ({', '.join(python)} in Python)"


ONLY, OF_SOLVER = Title(), Title(solver=True)
"""A net by itself, without a solver or the only one of it."""


def said_state(state: Any) -> str:
    """'no stage', 'stage "a", level 2'."""
    return _said(state.stage, state.level)


def _said(stages: Sequence[str], level: int) -> str:
    names = ", ".join(f'"{shown(stage)}"' for stage in stages)
    parts = [f"stage{'s' * (len(stages) > 1)} {names}" if names else "no stage"]
    return ", ".join(parts + [f"level {level}"] * bool(level))


def said_rule(rule: Any) -> str:
    """'phase TEST, stage "a", min_level 2', as the rule in the file says."""
    parts = [f"phase {_NAMES[rule.phase]}"] * rule.HasField("phase")
    parts += [f'stage "{shown(stage)}"' for stage in rule.stage]
    parts += [f'not_stage "{shown(stage)}"' for stage in rule.not_stage]
    parts += [f"{name} {getattr(rule, name)}" for name in ("min_level", "max_level") if rule.HasField(name)]
    return ", ".join(parts) or "an empty one"


@dataclass(frozen=True)
class LeftOut:
    """A layer that its rules leave out of a net: why, and the nearest stages and level that admit it.

    `phase`: only another phase has it; `never`: its rule can't be fulfilled.
    """

    name: str
    why: str
    stages: tuple[str, ...]
    level: int
    phase: bool = False
    never: bool = False


def left_out(message: Any, state: Any) -> LeftOut:
    """About a layer that `state` does not keep."""
    name = shown(message.name, 80)
    if message.include:
        rule = min(message.include, key=lambda rule: _distance(rule, state))
        rules = "; ".join(map(said_rule, message.include[:3])) + ("; ..." if len(message.include) > 3 else "")
        many = f"none of its {len(message.include)} include rules ({rules}) lets it in"
        why = many if len(message.include) > 1 else f"its include rule ({rules}) leaves it out"
        return _admitted(name, why, rule, state)
    rule = next(rule for rule in message.exclude if rule_matches(rule, state))
    return _escaped(name, f"its exclude rule ({said_rule(rule)}) leaves it out", rule, state)


def _distance(rule: Any, state: Any) -> int:
    stages = set(state.stage)
    wrong_phase = rule.HasField("phase") and rule.phase != state.phase
    changed = len(set(rule.stage) - stages) + len(set(rule.not_stage) & stages)
    # stages and a level can be set, another phase is another net
    return 1000 * wrong_phase + changed + (_level(rule, state) != state.level)


def _level(rule: Any, state: Any) -> int:
    level = max(state.level, rule.min_level) if rule.HasField("min_level") else state.level
    return min(level, rule.max_level) if rule.HasField("max_level") else level


def _admitted(name: str, why: str, rule: Any, state: Any) -> LeftOut:
    stages = [stage for stage in state.stage if stage not in rule.not_stage]
    stages += [stage for stage in dict.fromkeys(rule.stage) if stage not in stages]
    level = _level(rule, state)
    wrong_phase = rule.HasField("phase") and rule.phase != state.phase
    # tried out: a rule may ask for a stage and forbid it, or for levels that there are none between
    possible = NetState(phase=rule.phase if wrong_phase else state.phase, level=level, stage=stages)
    return LeftOut(name, why, tuple(stages), level, wrong_phase, not rule_matches(rule, possible))


def _escaped(name: str, why: str, rule: Any, state: Any) -> LeftOut:
    """The nearest state that an exclude rule does not match."""
    stages, level = tuple(state.stage), state.level
    if rule.stage:
        return LeftOut(name, why, tuple(stage for stage in stages if stage != rule.stage[0]), level)
    if rule.not_stage:
        return LeftOut(name, why, (*stages, rule.not_stage[0]), level)
    if rule.HasField("min_level"):
        return LeftOut(name, why, stages, rule.min_level - 1)
    if rule.HasField("max_level"):
        return LeftOut(name, why, stages, rule.max_level + 1)
    return LeftOut(name, why, stages, level, phase=rule.HasField("phase"), never=not rule.HasField("phase"))


def way_in(layers: Sequence[LeftOut], state: Any, title: Title, reader: str = "") -> str:
    """What to do so that one of the layers is in the net, or `reader`, which needs it, isn't."""
    # first what options can do, then what a rule has to, last what nothing can
    best = min(layers, key=lambda one: (one.never, one.phase))
    if best.never:
        return f"no net can have it: correct the rule of layer '{best.name}'"
    if best.phase:
        other = f", or leave layer '{reader}' out of it by the same rule" if reader else ""
        return f"make it in phase {_NAMES[state.phase]} too{other}"
    return title.setting(state, best.stages, best.level)


def hidden_makers(makers: Sequence[LeftOut], state: Any, title: Title, reader: str) -> str:
    """Of a blob that `reader` reads and only left-out layers make: in which net, by which rules, and what to do."""
    told = [f"layer '{one.name}' makes it, but {one.why}" for one in makers[:3]]
    more = f", and {len(makers) - 3} more" if len(makers) > 3 else ""
    return f" in the {title.full(state)}: {', '.join(told)}{more}; {way_in(makers, state, title, reader)}"


def in_net(error: ForceregError, net: str) -> ForceregError:
    """The error, which says whose it is: `net` as of `Title.short`, '' for the only one."""
    told = not net or f"the {net.split(' (')[0]}" in str(error)
    return error if told else type(error)(f"{error} (in the {net})")


@contextlib.contextmanager
def named(net: str) -> Iterator[None]:
    """Errors inside say which net they are about (see `in_net`)."""
    try:
        yield
    except ForceregError as error:
        raise in_net(error, net) from error.__cause__
