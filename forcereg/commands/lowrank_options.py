"""What decompose, ranks, sensitivity and frontier ask alike: a net, its layers and how each is decomposed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import click

from forcereg.commands.options import (
    code_options,
    data_options,
    device_options,
    given_shapes,
    input_shape_option,
    one_device,
)
from forcereg.errors import UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class LayerOptions:
    """What the options of `layer_options` say."""

    model: str | None
    method: str
    fc: bool
    only_layers: str | None
    except_layers: str | None
    fold_bn: bool
    multiple: int
    data_aware: int | None
    seed: int
    solver: str | None
    gpu: str | None
    device: str | None
    data_budget: int
    workers: int
    allow_python_layers: bool
    input_shape: tuple[str, ...]

    @property
    def on(self) -> str | None:
        """The one device to run on, None for the solver's. Raises UsageError for several."""
        return one_device(self.gpu, self.device)

    @property
    def keywords(self) -> dict[str, Any]:
        """The same as keywords of `forcereg.decompose`. Raises UsageError."""
        return {
            "model": self.model,
            "method": self.method,
            "layers": names("--only-layers", self.only_layers),
            "except_layers": names("--except-layers", self.except_layers) or (),
            "fc": self.fc,
            "multiple": self.multiple,
            "fold_bn": self.fold_bn,
            "data_aware": self.data_aware,
            "seed": self.seed,
            "data": self.solver,
            "device": self.on,
            "data_budget": self.data_budget,
            "workers": self.workers,
            "allow_python_layers": self.allow_python_layers,
            "input_shapes": given_shapes(self.input_shape),
        }


def gathered(into: str, kind: type, options: Sequence[Decorator]) -> Decorator:
    """A decorator that gives a command `options` as one argument: a `kind`, a dataclass with a field for each."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            own = {one.name: values.pop(one.name) for one in fields(kind)}
            return function(**{into: kind(**own)}, **values)

        wrapped: Callable[..., Any] = call
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


CHOICE: list[Decorator] = [
    click.option("--method", default="pca", show_default=True, metavar="pca|svd|kmeans|vh|tucker2|cp|mixed",
                 help="How to decompose; mixed: as --rank-config says for each layer."),
    click.option("--fc", is_flag=True, help="InnerProduct layers too, not convolutions only."),
    click.option("--only-layers", metavar="A,B", help="Decompose these layers only."),
    click.option("--except-layers", metavar="A,B", help="Leave these layers as they are."),
    click.option("--multiple", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Ranks (of each group) that are multiples of N, or full: rounded up, within budgets."),
]  # fmt: skip
"""Which layers, and how."""


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--method, --fc, --only-layers, --except-layers and --multiple as arguments of their own."""
    return functools.reduce(lambda made, option: option(made), reversed(CHOICE), function)


def choice_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `choice_options`, with those of device, data and code. Raises UsageError."""
    # of LayerOptions what they lack is as when it isn't given
    given: dict[str, Any] = {field.name: None for field in fields(LayerOptions)} | LACKING | dict(options)
    return {name: one for name, one in LayerOptions(**given).keywords.items() if name in KEYWORDS}


LACKING = {"fold_bn": False, "seed": 0, "input_shape": ()}
"""Of the options of `layer_options` what they lack and isn't None."""
KEYWORDS = (
    "method", "layers", "except_layers", "fc", "multiple", "device", "data_budget", "workers", "allow_python_layers",
)  # fmt: skip


layer_options = gathered("layers", LayerOptions, [
    click.option("--model", metavar="FILE", type=click.Path(),
                 help="Net prototxt.  [default: the net that the snapshot holds]"),
    *CHOICE,
    click.option("--fold-bn", is_flag=True, help="Fold BatchNorm and Scale into the layers before them first."),
    click.option("--data-aware", type=click.IntRange(min=1), metavar="N",
                 help="Minimise the error of the layers' responses on N training batches (pca and svd)."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Of kmeans and --recalibrate."),
    click.option("--solver", metavar="FILE", type=click.Path(), help="Solver prototxt, for what needs data."),
    device_options,
    data_options,
    code_options,
    input_shape_option,
])  # fmt: skip


def names(option: str, text: str | None) -> list[str] | None:
    """Layer names with commas; None if the option isn't given. Raises UsageError for none."""
    if text is None:
        return None
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise UsageError(f"{option} names no layer; expected names with commas, as in conv1,conv2")
    return found


def fractions(option: str, text: str, what: str, example: str) -> list[float]:
    """Numbers with commas. Raises UsageError, which calls them `what`, unless all are from 0 to 1."""
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= one <= 1 for one in found):
        raise UsageError(f"{option} is '{text}'; expected {what} from 0 to 1 with commas, as in {example}")
    return found


def bounds(text: str) -> list[float]:
    """The value of --error as bounds with commas. Raises UsageError unless all are from 0 to 1."""
    return fractions("--error", text, "bounds", "0.01,0.05")
