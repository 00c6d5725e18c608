"""What a data layer makes of pixels, as the first nodes of a file: order of colours, mean and scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forcereg.data.mean import read_mean
from forcereg.data.transform import centre_crop
from forcereg.errors import ForceregError, UsageError
from forcereg.exports.graph import Place, Value
from forcereg.net.deploy.files import DeployedNet
from forcereg.schema.spec import LayerSpec
from forcereg.system.paths import resolve

IMAGES = frozenset({"Data", "ImageData", "WindowData"})
"""Data layers that read pixels; their first top are the images."""


@dataclass(frozen=True)
class Pixels:
    """(x - mean) * scale of pixels x (N, C, H, W), whose colours are turned round before if `rgb`.

    mean: (C, 1, 1), or an image (C, H, W).
    """

    mean: Tensor | None
    scale: float
    rgb: bool

    @property
    def told(self) -> str:
        """What is fed, in a phrase."""
        rest = "the file subtracts the mean and scales" if self.mean is not None or self.scale != 1 else ""
        return ", ".join(filter(None, ["pixels from 0 to 255" + " (red, green, blue)" * self.rgb, rest]))

    def nodes(self, g: Place, x: Value) -> Value:
        """The same in a file."""
        if self.rgb:
            x = g("Gather", x, g.ints([2, 1, 0], "order"), axis=1)
        if self.mean is not None:
            x = g("Sub", x, g.constant(self.mean.numpy(), "mean"))
        return x if self.scale == 1 else g("Mul", x, g.constant(self.scale, "scale"))

    def __call__(self, x: Tensor) -> Tensor:
        x = x.flip(1) if self.rgb else x
        return (x if self.mean is None else x - self.mean) * self.scale

    def undone(self, x: Tensor) -> Tensor:
        """The pixels of which it makes x."""
        x = x / self.scale if self.mean is None else x / self.scale + self.mean
        return x.flip(1) if self.rgb else x


def pixels_of(deployed: DeployedNet, transform: bool, rgb: bool) -> dict[str, Pixels]:
    """Input -> what comes first, for --with-transform and --rgb. Raises UsageError where there is nothing to do."""
    found = {}
    for name, shape in deployed.inputs.items():
        spec = deployed.sources.get(name)
        is_image = transform and spec is not None and spec.type in IMAGES and spec.tops[0] == name
        if is_image and spec is not None:
            found[name] = _transformed(spec, shape, rgb)
        elif rgb and len(shape) == 4 and shape[1] == 3:
            found[name] = Pixels(None, 1.0, True)
    if transform and not any(one.mean is not None or one.scale != 1 for one in found.values()):
        raise UsageError("--with-transform: no data layer of the net says scale or mean; leave it out")
    if rgb and (wrong := [name for name in found if deployed.inputs[name][1] != 3] or ([] if found else ["none"])):
        raise UsageError(f"--rgb is for images of 3 channels, which '{wrong[0]}' is not; leave it out")
    return found


def _transformed(spec: LayerSpec, shape: tuple[int, ...], rgb: bool) -> Pixels:
    transform, own = spec.message.transform_param, spec.message.window_data_param
    scale, file, crop = transform.scale, transform.mean_file, transform.crop_size
    if spec.type == "WindowData":  # which reads these of its own, too
        scale = own.scale if own.HasField("scale") else scale
        file, crop = file or own.mean_file, crop or own.crop_size
    if not scale:
        raise spec.fail("scale is 0, which makes every image the same; correct it")
    mean = None
    if file:
        try:
            mean = torch.from_numpy(np.array(read_mean(resolve(spec.root, file))))
        except ForceregError as error:
            raise spec.fail(str(error)) from error
        mean = centre_crop(mean, crop) if crop and min(mean.shape[1:]) >= crop else mean
        if tuple(mean.shape) != shape[1:]:
            raise spec.fail(f"its mean image is {list(mean.shape)}, the input {list(shape[1:])}; they must be equal")
    elif values := list(transform.mean_value):
        if len(values) not in (1, shape[1]):
            raise spec.fail(f"has {len(values)} mean_value entries for {shape[1]} channels; give one or {shape[1]}")
        mean = torch.tensor(values, dtype=torch.float32).expand(shape[1]).reshape(-1, 1, 1).contiguous()
    return Pixels(mean, scale, rgb)
