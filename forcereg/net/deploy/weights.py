"""The weights of a net for use: those of its layers, out of the model that was trained, with that net inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from forcereg.net.convert import MESSAGE, everywhere, write_in_format
from forcereg.net.load import net_spec
from forcereg.schema.text import NetFile, parse_net
from forcereg.snapshot import INPUT_SHAPES, NET, ModelFile, net_message


def write_weights(path: Path, text: str, inputs: dict[str, Any], model: ModelFile, file: NetFile, form: str) -> None:
    """Writes the model of the net for use, whose prototxt is `text`, and all else that was known of the old one.

    `inputs`: blob -> shape of what it is fed; `model`: the weights of the net `file`; `form`: "binary" or "hdf5".
    Raises ForceregError.
    """
    message = net_message(net_spec(parse_net(text), "TEST"))
    held = everywhere(model, file.message, file)
    layers = {layer.name: held.get(layer.name, {}) for layer in message.layer}
    kept = {name: value for name, value in model.attrs.items() if name != MESSAGE}  # that is of the old net's layers
    attrs = {**kept, NET: text, INPUT_SHAPES: json.dumps({name: list(shape) for name, shape in inputs.items()})}
    write_in_format(path, replace(model, layers=layers, diffs={}, attrs=attrs), message, form)
