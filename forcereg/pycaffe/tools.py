"""What `forcereg classify` and `forcereg detect` share: the files and settings of Caffe's two tools."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from forcereg.net.load import net_file, shape_net
from forcereg.net.module import Net
from forcereg.pycaffe.state import STATE
from forcereg.system.files import read_file
from forcereg.system.paths import StrPath
from forcereg.system.shipped import configs_dir

CAFFENET = "models/caffenet/deploy.prototxt"
IMAGENET = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
"""B, G and R of ILSVRC 2012's mean image, which Caffe's tools take where they are told nothing."""


def checked_net(model: StrPath | None, allow_python_layers: bool) -> tuple[Path, Net]:
    """The net file, CaffeNet's for None, and its net without memory. Raises ForceregError for what is wrong in it, for
    a net without inputs, and for one whose first input takes no images."""
    path = configs_dir() / CAFFENET if model is None else Path(model)
    net = shape_net(net_file(path), "TEST", allow_python_layers=allow_python_layers)
    for name in list(net.inputs)[:1]:
        if len(net.shapes[name]) == 4:
            return path, net
        raise ForceregError(f"{path}: input '{name}' is {list(net.shapes[name])}; expected N, C, H, W")
    raise ForceregError(f"{path}: has no inputs; make a net for use: `forcereg deploy {path}`")


def input_shape(net: Net) -> tuple[int, ...]:
    """(N, C, H, W) of the first input."""
    return tuple(net.shapes[next(iter(net.inputs))])


def settings(
    channels: int,
    mean_file: str | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int],
    single: bool = False,
) -> dict[str, Any]:
    """Classifier's and Detector's keywords; `single`: of a mean image each channel's mean.

    Raises ForceregError for a mean file that can't be read, and for what hasn't the net's channels.
    """
    if len(channel_swap) not in (0, channels):
        raise ForceregError(
            f"channel_swap has {len(channel_swap)} numbers, the net's input {channels} channels; give as many"
        )
    mean = mean_of(mean_file, channels)
    if single and mean is not None and mean.ndim == 3:
        mean = mean.mean((1, 2))
    if mean is not None and len(mean) != channels:
        raise ForceregError(f"mean_file has {len(mean)} channels, the net's input {channels}; give '' for none")
    return {
        "mean": mean,
        "input_scale": input_scale,
        "raw_scale": raw_scale,
        "channel_swap": tuple(channel_swap) or None,
    }


def mean_of(path: str | None, channels: int) -> np.ndarray | None:
    """(C,) or (C, H, W) of an .npy or .binaryproto file; None for ''. For None ImageNet's, for three channels."""
    if path is None:
        return IMAGENET if channels == 3 else None
    if path == "":
        return None
    mean = read_array(path) if path.endswith("npy") else read_mean(Path(path))
    if mean.ndim not in (1, 3):
        raise ForceregError(f"mean_file {path}: has the shape {mean.shape}; expected (C,) or (C, H, W)")
    return mean.astype(np.float32)


def read_array(path: StrPath) -> np.ndarray:
    """The numbers of an .npy file. Raises ForceregError."""
    try:
        # objects would be a pickle
        found: np.ndarray = np.load(io.BytesIO(read_file(Path(path))), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ForceregError(f"{path}: {reason}; expected an .npy file of numbers") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise ForceregError(f"{path}: holds no array of numbers; expected an .npy file of numbers")
    return found


@contextmanager
def computing(gpu: bool) -> Iterator[None]:
    """Nets made inside compute on the GPU, or on the CPU; behind, as before."""
    before, STATE.gpu = STATE.gpu, gpu
    try:
        yield
    finally:
        STATE.gpu = before
