"""Which of a net's convolutions run in which sparse form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from forcereg.layers.sparse import DENSE, NO_BACKWARD
from forcereg.layers.weighted import Convolution
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec


@dataclass(frozen=True)
class Execution:
    """How a convolution runs: its `form`, the `share` of weights that aren't 0, and milliseconds by form, if measured.

    `note`: why it isn't what was asked for.
    """

    layer: str
    form: str
    share: float
    ms: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def text(self) -> str:
        """For people."""
        measured = ", ".join(f"{form} {ms:.3g} ms" for form, ms in self.ms.items())
        return f"{self.share:.1%} of weights aren't 0, {self.form}" + "".join(
            f" ({part})" for part in (measured, self.note) if part
        )


def convolutions(net: Net) -> list[tuple[LayerSpec, Convolution]]:
    """A net's Convolution layers, in net order."""
    return [(spec, module) for spec, module in net.built if isinstance(module, Convolution)]


def form_of(module: Convolution) -> str:
    """The name of the form in which a layer runs."""
    return DENSE if module.sparse is None else module.sparse.name


def share_left(module: Convolution) -> float:
    """The share of a layer's weights that aren't 0."""
    weight = module.weight_blob()
    return int(weight.count_nonzero()) / max(1, weight.numel())


def check_learns(net: Net) -> None:
    """Raises ForceregError for a layer that is to learn, but whose conv_mode is for tests."""
    for spec, module in convolutions(net):
        if module.sparse is not None and module.weight_blob().requires_grad:
            raise spec.fail(NO_BACKWARD)
