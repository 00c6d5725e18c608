"""Windows of images scored by a trained net: `forcereg detect`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from forcereg.data.images import text_lines
from forcereg.errors import ForceregError, UsageError
from forcereg.pycaffe.detector import Detector
from forcereg.pycaffe.tools import checked_net, computing, input_shape, settings
from forcereg.report.table import csv_text
from forcereg.system.arguments import checked
from forcereg.system.files import check_writable, replace_file, write_text
from forcereg.system.paths import StrPath

CORNERS = ("ymin", "xmin", "ymax", "xmax")
MODES = ("selective_search", "list")


@checked
def detect(
    input_file: StrPath,
    output_file: StrPath,
    *,
    pretrained_model: StrPath,
    model_def: StrPath | None = None,
    crop_mode: str = "selective_search",
    gpu: bool = False,
    mean_file: str | None = None,
    input_scale: float | None = None,
    raw_scale: float | None = 255.0,
    channel_swap: Sequence[int] = (2, 1, 0),
    context_pad: int = 16,
    allow_python_layers: bool = False,
) -> list[dict[str, Any]]:
    """Scores windows of images and writes them; returns a dict each: `filename`, `window`, `prediction`; as Caffe's
    detect.py.

    `crop_mode`: "list", where `input_file` is a .csv with the columns filename, ymin, xmin, ymax and xmax, or
    "selective_search", where it is a .txt of images' names, and other people's module proposes the windows.
    `output_file`: a .csv with those columns and class0, class1, ...; else HDF5 with `filename`, `window` (N, 4) and
    `prediction` (N, classes) in the group `df`. `context_pad`: pixels of the input, on each side, that show what is
    around the window. Of a mean image each channel's mean is taken. The others are as for `classify`.
    Raises UsageError for another mode or ending, ForceregError for anything wrong in the files.

    >>> import pathlib
    >>> from PIL import Image
    >>> Image.new("L", (20, 20), 99).save("grey.png")
    >>> _ = pathlib.Path("windows.csv").write_text("filename,ymin,xmin,ymax,xmax\\ngrey.png,2,2,12,16\\n")
    >>> found = forcereg.detect("windows.csv", "found.csv", model_def="deploy.prototxt", crop_mode="list",
    ...                         pretrained_model="net_iter_20.caffemodel.h5", channel_swap=(), context_pad=0)
    >>> found[0]["filename"], found[0]["window"].tolist(), found[0]["prediction"].shape
    ('grey.png', [2.0, 2.0, 12.0, 16.0], (3,))
    """
    if crop_mode not in MODES:
        raise UsageError(f"crop_mode is '{crop_mode}'; expected {' or '.join(MODES)}")
    source, kind = Path(input_file), {"list": ".csv", "selective_search": ".txt"}[crop_mode]
    if source.suffix.lower() != kind:
        raise UsageError(f"INPUT_FILE is '{source}'; with --crop_mode {crop_mode} expected a name that ends in {kind}")
    check_writable(Path(output_file))
    path, net = checked_net(model_def, allow_python_layers)
    channels = input_shape(net)[1]
    if not 0 <= 2 * context_pad < min(input_shape(net)[2:]):
        size = "x".join(map(str, input_shape(net)[2:]))
        raise ForceregError(f"context_pad is {context_pad}; expected less than half of the net's input, {size}")
    given = settings(channels, mean_file, input_scale, raw_scale, channel_swap, single=True)
    windows = read_windows(source) if crop_mode == "list" else {}
    with computing(gpu):
        detector = Detector(str(path), str(pretrained_model), context_pad=context_pad, **given)
        try:
            if crop_mode == "list":
                found = detector.detect_windows(windows.items())
            else:
                found = detector.detect_selective_search([line for _, line in text_lines(source, str(source))])
        except ImportError as error:
            raise ForceregError(f"{error}, for --crop_mode list") from None
        except AssertionError as error:
            raise ForceregError(f"{source}: {error}") from None
        except OSError as error:
            raise ForceregError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    _write(Path(output_file), found)
    return found


def read_windows(path: Path) -> dict[str, list[np.ndarray]]:
    """Image file -> its windows (ymin, xmin, ymax, xmax), of a .csv; files in the order of their first windows.

    Raises ForceregError with the line's number.
    """
    lines = list(text_lines(path, str(path)))
    rows = csv.reader(line for _, line in lines)
    header = [name.strip() for name in next(rows, [])]
    if lacking := [name for name in ("filename", *CORNERS) if name not in header]:
        raise ForceregError(f"{path}:1: has no column {', '.join(lacking)}; expected filename,{','.join(CORNERS)}")
    found: dict[str, list[np.ndarray]] = {}
    for (number, line), row in zip(lines[1:], rows, strict=True):
        cells = dict(zip(header, row, strict=False))
        try:
            window = np.array([float(cells[name]) for name in CORNERS])
            found.setdefault(cells["filename"], []).append(window)
        except (KeyError, ValueError):
            raise ForceregError(f"{path}:{number}: is '{line[:200]}'; expected a name and four numbers") from None
    return found


def _write(path: Path, found: Sequence[dict[str, Any]]) -> None:
    windows = np.array([one["window"] for one in found], np.float64).reshape(-1, 4)
    scores = np.array([np.ravel(one["prediction"]) for one in found], np.float32).reshape(len(found), -1)
    names = [str(one["filename"]) for one in found]
    if path.suffix.lower() == ".csv":
        header = ("filename", *CORNERS, *(f"class{number}" for number in range(scores.shape[1])))
        rows = zip(names, windows.tolist(), scores.tolist(), strict=True)
        write_text(path, csv_text(header, ((name, *window, *score) for name, window, score in rows)))
        return
    with replace_file(path) as temp, h5py.File(temp, "w") as file:
        file["df/filename"], file["df/window"], file["df/prediction"] = names, windows, scores
