"""What a deployed net is fed: the shapes of its data, and what its data layers did to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import forcereg.registry as registry
from forcereg.data.feed import FeedContext
from forcereg.data.sources import open_source
from forcereg.errors import ForceregError
from forcereg.layers import make_layer
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec

Shape = tuple[int, ...]


def data_shapes(
    spec: LayerSpec, tops: Sequence[str], known: Mapping[str, Sequence[int]], allow_python_layers: bool = False
) -> dict[str, Shape]:
    """Of these tops of a data layer: from `known` where they can't be found out. Raises ForceregError."""
    try:
        with torch.device("meta"):
            if spec.type in registry.source:
                feed = open_source(spec, FeedContext(spec.root, torch.device("cpu")))
                shapes: Sequence[Shape] = feed.shapes
                feed.close()
            else:
                shapes = make_layer(spec, [], allow_python_layers).out_shapes
    except ForceregError as error:
        if all(top in known for top in tops):
            return {top: tuple(known[top]) for top in tops}
        sizes = ",".join(map(str, _guess(spec)))
        missing = " ".join(f"--input-shape {shown(top, 80)}={sizes}" for top in tops if top not in known)
        raise ForceregError(f"{error}; or give its shape: {missing} (input_shapes in Python)") from error
    found = dict(zip(spec.tops, shapes, strict=True))
    return {top: tuple(found[top]) for top in tops}


def _guess(spec: LayerSpec) -> Sequence[Any]:
    crop = spec.message.transform_param.crop_size
    return (1, "C", crop, crop) if crop else (1, "C", "H", "W")


def preparation(spec: LayerSpec, shape: Shape) -> str:
    """What a data layer makes of pixels, in a phrase; empty for one that gives what it has. `shape`: its top's."""
    if spec.type not in ("Data", "ImageData", "WindowData"):
        return ""
    message = spec.message
    transform, image, window = message.transform_param, message.image_data_param, message.window_data_param
    scale, crop, mean = transform.scale, transform.crop_size, transform.mean_file
    steps = ["pixels from 0 to 255"]
    if len(shape) > 1 and shape[1] == 3:
        steps[0] += (
            " (blue, green, red)"
            if spec.type != "Data"
            else " (colours in the order of the data: blue, green, red of image files)"
        )
    if spec.type == "WindowData":  # which reads these of its own, too
        crop, mean = crop or window.crop_size, mean or window.mean_file
        scale = window.scale if window.HasField("scale") else scale
    if spec.type == "ImageData" and image.new_height:
        steps.append(f"resized to {image.new_height}x{image.new_width}")
    if crop:
        steps.append(f"windows as {crop}x{crop}" if spec.type == "WindowData" else f"{crop}x{crop} from the centre")
    if mean:
        steps.append(f"minus the mean image {mean}" + (" at the same place" if crop else ""))
    elif transform.mean_value:
        steps.append(f"minus {', '.join(map(_number, transform.mean_value))}")
    if scale != 1:
        steps.append(f"times {_number(scale)}")
    return ", ".join(steps)


def _number(value: float) -> str:
    """The shortest text of a float32."""
    return str(np.float32(value)).removesuffix(".0")
