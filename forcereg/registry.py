"""Every extension point of forcereg: one `Registry` each, filled by a decorator where the thing is defined.

A new layer, filler, data source, learning rate policy, regularizer, weight decay, force type, solver type,
decomposition, rule for ranks, way to spread a budget, runtime to measure by, way to shrink a layer, sparse form of a
convolution, way to average gradients, executor of jobs or tracker of runs is one function or class with one decorator;
nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from forcereg.errors import ForceregError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How a command offers a registered thing: its value is a number of `low` to `high`, a text, or a file's path.

    `flag` as in --max-macs; `metavar` and `help` are for --help; `above`: the lowest number is left out.
    """

    flag: str
    metavar: str
    help: str
    type: type = str
    low: float | None = None
    high: float | None = None
    above: bool = False

    @property
    def field(self) -> str:
        """The flag as a name."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class About:
    """What users are told of a registered thing: the LayerParameter messages it reads, and its limits in a phrase.

    One of `params` is the name of a message, or `message.field,field` where only some of its fields are read; of an
    ONNX form it is an operator, of a runtime or sparse form a module that it needs, whose installation `limits` tells.
    `option`: of things that are each an option of a command.
    """

    params: tuple[str, ...] = ()
    limits: str = ""
    option: Option | None = None


class Registry(Generic[T]):
    """Named implementations of one kind ("layer type", "filler", ...).

    Used as a decorator: `@layer("ReLU")`. A name given twice is a programming error.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._known: dict[str, T] = {}
        self._about: dict[str, About] = {}

    def __call__(self, name: str, params: str = "", limits: str = "", option: Option | None = None) -> Callable[[T], T]:
        """The decorator. `params` (space separated) and `limits` go into the support table."""

        def register(item: T) -> T:
            if name in self._known:
                # not a ForceregError: no user's input is wrong
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._known[name] = item
            self._about[name] = About(tuple(params.split()), limits, option)
            return item

        return register

    def get(self, name: str, where: str = "") -> T:
        """The implementation called `name`; `where` (file, line, layer) opens the error if there is none."""
        if name in self._known:
            return self._known[name]
        prefix = f"{where}: " if where else ""
        hint = did_you_mean(name, self._known) or f"; known are {', '.join(sorted(self._known))}"
        raise ForceregError(f"{prefix}unknown {self.kind} {name!r}{hint}")

    def about(self, name: str) -> About:
        """What was said of `name` when it was registered."""
        return self._about[name]

    @property
    def options(self) -> dict[str, Option]:
        """Name -> option of all that have one, in the order in which they were registered."""
        return {name: about.option for name, about in self._about.items() if about.option is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        # the order of registration hangs on who imports what first
        return iter(sorted(self._known))


layer: Registry[Any] = Registry("layer type")
filler: Registry[Any] = Registry("filler type")
source: Registry[Any] = Registry("data layer type")
lr_policy: Registry[Any] = Registry("lr_policy")
regularizer: Registry[Any] = Registry("regularizer")
weight_decay: Registry[Any] = Registry("regularization_type")
force_type: Registry[Any] = Registry("force_type")
solver_type: Registry[Any] = Registry("solver type")
factorizer: Registry[Any] = Registry("decomposition method")
rank_rule: Registry[Any] = Registry("rank rule")
chooser: Registry[Any] = Registry("way to spread a budget")
onnx_form: Registry[Any] = Registry("layer type with an ONNX form")
runtime: Registry[Any] = Registry("runtime")
shrink_rule: Registry[Any] = Registry("layer type that is shrunk")
sparse_form: Registry[Any] = Registry("sparse form")
tracker: Registry[Any] = Registry("tracker")
gradient_scheme: Registry[Any] = Registry("way to average gradients")
executor: Registry[Any] = Registry("executor")
