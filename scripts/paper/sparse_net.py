"""A training net with fields of structured sparsity on some of its layers.

    python scripts/paper/sparse_net.py FROM TO PATTERN:FIELD=VALUE...

FIELD: one of the layer, as in `conv*:connectivity_mode=DISCONNECTED_GRPWISE`; one of its weights' `param`, as in
`conv2:kernel_shape_decay_mult=1.7321`; or `depth=MULT`, group lasso on all of the layer's weights as one block. Later
words win. A pattern that names no layer with weights ends it.
"""

from __future__ import annotations

import argparse
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from forcereg.net.load import shape_net
from forcereg.schema import LayerParameter
from forcereg.schema.text import parse_net, read_net, to_text
from forcereg.system.files import write_text

WORD = re.compile(r"(?P<pattern>[^:]+):(?P<field>\w+)=(?P<value>.+)")
TYPES = ("Convolution", "InnerProduct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("made", type=Path)
    parser.add_argument("words", nargs="+")
    asked = parser.parse_args()
    net = read_net(asked.source).message
    for word in asked.words:
        found = WORD.fullmatch(word)
        if found is None:
            parser.error(f"{word}: expected PATTERN:FIELD=VALUE")
        layers = [layer for layer in net.layer if layer.type in TYPES and fnmatchcase(layer.name, found["pattern"])]
        if not layers:
            parser.error(f"{word}: no {' or '.join(TYPES)} layer of that name in {asked.source}")
        for layer in layers:
            put(layer, found["field"], found["value"], asked.source)
    text = to_text(net)
    parse_net(text, str(asked.made))
    write_text(asked.made, f"# {asked.source} with {', '.join(asked.words)}\n{text}")


def put(layer: Any, field: str, value: str, source: Path) -> None:
    """Sets it in the layer, or in the first of its `param`."""
    if field == "depth":
        rows, columns = matrix(layer.name, source)
        weights(layer).block_group_lasso.add(xdimen=columns, ydimen=rows, block_decay_mult=float(value))
    elif field == "connectivity_mode":
        layer.connectivity_mode = LayerParameter.ConnectivityMode.Value(value)
    else:
        param = weights(layer)
        setattr(param, field, type(getattr(param, field))(value))


def weights(layer: Any) -> Any:
    """The `param` of a layer's weights, made if need be."""
    return layer.param[0] if layer.param else layer.param.add()


def matrix(layer: str, source: Path) -> tuple[int, int]:
    """Rows and columns of a layer's weights."""
    shape = shape_net(source, "TRAIN", 0, ()).params[layer][0].shape
    return shape[0], shape[1:].numel()


if __name__ == "__main__":
    main()
