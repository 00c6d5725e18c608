"""Functions of the user's that are told what happens in a run: on one kind of events, or named on the command line."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.system.events import ALIASES, KINDS, Event
from forcereg.system.plugins import import_module, told

EVERY = "*"
Hook = Callable[[Event], Any]
Callback = Callable[[Event, Any], Any]
"""A function of an event and of the solver that tells it."""
H = TypeVar("H", bound=Hook)


class Hooks:
    """Observer that hands each event to the functions that want its kind; nothing is made for them that isn't told."""

    def __init__(self) -> None:
        self._wanted: dict[str, list[Hook]] = {}

    def add(self, kind: str, function: H) -> H:
        """See Solver.on."""
        name = ALIASES.get(kind, kind)
        if name not in KINDS and name != EVERY:
            known = sorted({*KINDS, *ALIASES, EVERY})
            hint = did_you_mean(kind, known) or f"; kinds are {', '.join(known)}"
            raise UsageError(f"there is no event '{kind}'{hint}")
        if not callable(function):
            raise UsageError(f"{function!r} can't be called; expected a function of an Event")
        self._wanted.setdefault(name, []).append(function)
        return function

    def remove(self, function: Hook) -> None:
        """Tells `function` no more."""
        for wanting in self._wanted.values():
            while function in wanting:
                wanting.remove(function)

    def __call__(self, event: Event) -> None:
        # a copy: a function may take itself out
        for function in (*self._wanted.get(event.kind, ()), *self._wanted.get(EVERY, ())):
            function(event)


def functions(given: str | Callback | Sequence[str | Callback]) -> list[str | Callback]:
    """The callbacks of a keyword: one, or several. Raises UsageError for what is none."""
    several = [given] if isinstance(given, str) or callable(given) else given
    if not isinstance(several, Sequence) or not all(isinstance(one, str) or callable(one) for one in several):
        raise UsageError(f"callback is {given!r}; expected a function, module:function, or several in a list")
    return list(several)


def attach(solver: Any, callback: str | Callback) -> None:
    """Has a callback told of all that happens from here on. Raises as `callback_of`."""
    function = callback_of(callback)
    # weakly: a solver and its memory go with its last holder
    me = weakref.ref(solver)
    solver.on(EVERY, lambda event: function(event, me()))


def callback_of(named: str | Callback) -> Callback:
    """The function that "module:function" names, whose errors are told in one line; a function is taken as it is.

    Imports the module, which runs its code. Raises UsageError for another form, ForceregError if it can't be imported
    or has no such function.
    """
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    if not (module and name):
        raise UsageError(f"callback is '{named}'; expected module:function, as in hooks:on_event")
    found: Any = import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found)) or "; name one that it has"
            raise ForceregError(f"callback '{named}': Python module '{module}' has no '{name}'{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ForceregError(f"callback '{named}' is a {type(found).__name__}; expected a function of event and solver")

    def call(event: Event, solver: Any) -> None:
        try:
            found(event, solver)
        except ForceregError:
            raise
        except Exception as error:
            raise ForceregError(f"callback '{named}' at event '{event.kind}': {told(error)}") from error

    return call
