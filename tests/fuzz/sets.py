"""What converters and lists read, damaged: tars, packed streams, idx files, pickles, lists, window files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forcereg.data.budget import DECODING
from forcereg.data.cifar import read_cifar10
from forcereg.data.cifar_batches import read_pickled
from forcereg.data.idx import IMAGES_MAGIC, read_idx
from forcereg.data.image_data import read_list
from forcereg.data.windows import read_windows
from forcereg.errors import ForceregError
from tests.data.bombs import png
from tests.data.test_packed import PICKLES, TARS, python2
from tests.fuzz.hostile import mangled

PACK: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, bz2.compress, lzma.compress)


def prepare(folder: Path) -> None:
    """A good one of each, in a folder of its own."""
    data = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (
            *((f"train/cat/{number}.png", png(3, 3)) for number in range(3)),
            ("test/cat/" + "long" * 50 + ".png", png(3, 3)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    kinds = {
        "tar": [file.getvalue(), *(content() for content, _ in TARS.values())],
        "idx": [b"\0\0\x08\x03" + b"\0\0\0\2" * 3 + bytes(8)],
        "pickle": [
            python2("data_batch_1", data, [1, 2]),
            *(pickle.dumps({"data": data, "labels": [1, 2]}, protocol) for protocol in (2, 4, 5)),
            *(content for content, _ in PICKLES.values()),
        ],
        "list": [b"a.png 1\nb c.png 2\n\n/d.png -3\n" * 5],
        "windows": [b"# 0\na.png\n3\n8\n9\n2\n1 0.7 0 0 3 3\n0 0.1 1 1 4 4\n# 1\nb.png\n3\n8\n9\n0\n"],
    }
    for kind, contents in kinds.items():
        (folder / kind).mkdir()
        for number, content in enumerate(contents):
            (folder / kind / str(number)).write_bytes(content)


def attempt(chance: random.Random, folder: Path) -> None:
    DECODING.limit = 8 << 20
    kind = chance.choice(("tar", "idx", "pickle", "list", "windows"))
    content = chance.choice(sorted((folder / kind).iterdir())).read_bytes()
    if chance.random() < 0.95:
        content = mangled(chance, content)
    trial = folder / "trial"
    try:
        if kind == "pickle":
            images, labels = read_pickled("batch", content)
            assert images.shape == (len(labels), 3, 32, 32) and images.dtype == labels.dtype == np.uint8
        elif kind == "idx":
            packed = chance.random() < 0.5
            for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
                (folder / name).unlink(missing_ok=True)
            content = mangled(chance, gzip.compress(content)) if packed else content
            (folder / f"train-images-idx3-ubyte{'.gz' * packed}").write_bytes(content)
            assert read_idx(folder, "train-images", IMAGES_MAGIC).ndim == 3
        else:
            if kind == "tar":
                content = chance.choice(PACK)(content)
                content = mangled(chance, content) if chance.random() < 0.3 else content
            trial.write_bytes(content)
            use = {"tar": read_cifar10, "list": lambda path: read_list(path, "list"), "windows": windows}[kind]
            use(trial)
    except ForceregError as error:
        assert "\n" not in str(error) and len(str(error)) < 1100


def windows(path: Path) -> None:
    read_windows(path, "windows", 0.5, 0.5)
