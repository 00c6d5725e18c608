"""Images scored by a trained net: `forcereg classify`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forcereg.errors import ForceregError
from forcereg.pycaffe.classifier import Classifier
from forcereg.pycaffe.io import load_image
from forcereg.pycaffe.tools import checked_net, computing, input_shape, read_array, settings
from forcereg.system.arguments import checked
from forcereg.system.files import check_writable, write_bytes
from forcereg.system.paths import StrPath


@checked
def classify(
    input_file: StrPath,
    output_file: StrPath,
    *,
    pretrained_model: StrPath,
    model_def: StrPath | None = None,
    gpu: bool = False,
    center_only: bool = False,
    images_dim: Sequence[int] = (256, 256),
    mean_file: str | None = None,
    input_scale: float | None = None,
    raw_scale: float | None = 255.0,
    channel_swap: Sequence[int] = (2, 1, 0),
    ext: str = "jpg",
    allow_python_layers: bool = False,
) -> np.ndarray:
    """Scores images and writes the scores as .npy; returns them, float32 (N, classes), as Caffe's classify.py.

    `input_file`: an image, a folder of images that end in `ext`, by name, or an .npy of images (N, H, W, K).
    `model_def`: a net for use, None for the shipped CaffeNet; `pretrained_model`: its weights. Images are resized to
    `images_dim` (height, width); the scores are means over ten crops, or with `center_only` of the middle one.
    `mean_file`: an .npy or .binaryproto, "" for none, None for ImageNet's mean colour where there are three channels.
    `raw_scale`, `channel_swap` (empty for none), `input_scale`: as of `caffe.io.Transformer`. Nets of one channel get
    grey images. Raises ForceregError for anything wrong in the files.

    >>> import numpy
    >>> numpy.save("images.npy", numpy.zeros((2, 9, 9, 1)))
    >>> forcereg.classify("images.npy", "scores.npy", model_def="deploy.prototxt", channel_swap=(),
    ...                   pretrained_model="net_iter_20.caffemodel.h5", images_dim=(9, 9)).shape
    (2, 3)
    """
    out = npy_name(output_file)
    check_writable(out)
    if len(images_dim) != 2 or min(images_dim) < 1:
        raise ForceregError(f"images_dim is {list(images_dim)}; expected height and width, as in 256,256")
    path, net = checked_net(model_def, allow_python_layers)
    channels, *crop = input_shape(net)[1:]
    if min(images_dim[0] - crop[0], images_dim[1] - crop[1]) < 0:
        raise ForceregError(f"images_dim is {list(images_dim)}; expected the net's input, {crop}, at least")
    given = settings(channels, mean_file, input_scale, raw_scale, channel_swap)
    images = _images(Path(input_file), ext, color=channels != 1)
    with computing(gpu):
        classifier = Classifier(str(path), str(pretrained_model), image_dims=tuple(images_dim), **given)
        scores = classifier.predict(images, oversample=not center_only)
    buffer = io.BytesIO()
    np.save(buffer, scores)
    write_bytes(out, buffer.getvalue())
    return scores


def npy_name(path: StrPath) -> Path:
    """The name under which numpy.save writes."""
    return Path(path) if str(path).endswith(".npy") else Path(f"{path}.npy")


def _images(source: Path, ext: str, color: bool) -> list[np.ndarray]:
    """The images that a path stands for. Raises ForceregError."""
    if source.name.endswith("npy"):
        images = read_array(source)
        if images.ndim != 4:
            raise ForceregError(f"{source}: has the shape {images.shape}; expected images (N, H, W, K)")
        return [np.asarray(image, np.float32) for image in images]
    files = sorted(source.glob(f"*.{ext}")) if source.is_dir() else [source]
    if not files:
        raise ForceregError(f"{source}: holds no *.{ext}; say by --ext what its images end in")
    try:
        return [load_image(file, color) for file in files]
    except OSError as error:
        raise ForceregError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
