"""Which layer types run, as the registry knows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import forcereg.layers
import forcereg.net.module  # noqa: F401  (registers the data layers)
import forcereg.registry as registry
from forcereg.net.deploy.graph import LOSSES
from forcereg.schema import LayerParameter
from forcereg.system.plugins import entry_point_layers


@dataclass(frozen=True)
class Support:
    """A layer type, the fields of each parameter message that it reads, what it doesn't do, and what ONNX has for it.

    `onnx`: the operators that it becomes, some or all of them; "input" of what is fed; empty if it has no form there.
    """

    type: str
    params: dict[str, list[str]]
    limits: str
    onnx: str = ""


def supported() -> list[Support]:
    """Every layer and data layer type, by name as people sort it; ONNX's operators where `exports` is loaded."""
    rows = []
    for kind in (registry.layer, registry.source):
        for name in kind:
            about = kind.about(name)
            rows.append(Support(name, dict(map(_fields, about.params)), about.limits, _in_onnx(name)))
    for name, point in entry_point_layers().items():
        if name not in registry.layer:
            # by name only: loading it would run its code
            rows.append(Support(name, {}, f"from {point.dist.name if point.dist else point.value}"))
    return sorted(rows, key=lambda row: row.type.lower())


def _in_onnx(name: str) -> str:
    """What a type becomes in the net for use: what a loss becomes there is what `deploy` makes of it."""
    if name in registry.source or name == "Input":
        return "input"
    _, kind = LOSSES.get(name, ((), name))
    if kind not in registry.onnx_form:
        return ""
    return ", ".join(registry.onnx_form.about(kind).params) or "none"


def _fields(param: str) -> tuple[str, list[str]]:
    """'tile_param' -> its name and all of its fields; 'data_param.prefetch' -> only those that are named.

    Of a message that isn't Caffe's nobody knows others.
    """
    name, _, some = param.partition(".")
    known = LayerParameter.DESCRIPTOR.fields_by_name.get(name)
    if some or known is None or known.message_type is None:
        return name, [field for field in some.split(",") if field]
    return name, [field.name for field in known.message_type.fields]


def markdown(rows: Iterable[Support]) -> str:
    """The table of forcereg/layers/README.md."""
    lines = ["| type | parameters | ONNX | limits |", "|---|---|---|---|"]
    for row in rows:
        params = "; ".join(f"`{name}`: {', '.join(fields)}" for name, fields in row.params.items())
        lines.append(f"| {row.type} | {params} | {row.onnx} | {row.limits} |")
    return "\n".join(lines) + "\n"
