"""Feeding 256x256 JPEGs: forcereg's stream from an LMDB against a torch DataLoader over the same files.

    python scripts/bench/data.py [--cache DIR] [--images 10000] [--batch 64] [--workers 0] [--rounds 7] [--device cpu]

The images are synthetic: noise whose octaves fade as in photographs (1/f), JPEG quality 90. They are written once
to DIR (default: a temporary folder), as files and as an LMDB with the same bytes. Both contestants deliver float32
batches on the device, cropped to 227x227 at random, mirrored at random, minus a mean per channel, and labels:
- forcereg: a Data layer in TRAIN phase with a budget of a tenth of the decoded set, so that it streams;
- DataLoader: Pillow decodes and crops, uint8 tensors are collated in the workers (processes, persistent), the
  conversion to float and the mean are done for the whole batch (page-locked and on the GPU if there is one).
First one pass of forcereg over the set shows how much memory it takes; then blocks of batches of both are timed in
turn, each after as many batches as may have been waiting. Prints medians; writes them as JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from forcereg.data.convert import write_lmdb
from forcereg.data.database import database_feed
from forcereg.data.feed import Feed, FeedContext
from forcereg.data.prefetch import default_workers
from forcereg.schema import TRAIN, Datum, NetParameter
from forcereg.schema.spec import LayerSpec
from forcereg.system.device import prepare

SIZE, CROP, MEAN, AHEAD = 256, 227, (104.0, 117.0, 123.0), 4
NET = """layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { crop_size: %d mirror: true mean_value: %g mean_value: %g mean_value: %g }
  data_param { source: "lmdb" batch_size: %d backend: LMDB prefetch: %d } }"""


def picture(random: np.random.Generator) -> bytes:
    """A JPEG file of 1/f noise."""
    image = np.full((SIZE, SIZE, 3), 128, np.float32)
    for octave in range(1, 9):
        noise = random.standard_normal((1 << octave, 1 << octave, 3)).astype(np.float32)
        wide = [Image.fromarray(noise[:, :, c]).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for c in range(3)]
        planes = np.stack([np.asarray(plane, np.float32) for plane in wide], 2)
        image += 60 / 1.35**octave * (0.7 * planes[:, :, :1] + 0.3 * planes)
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make(folder: Path, count: int) -> list[Path]:
    """The files of the set and, beside them, the LMDB with the same bytes, unless they are there already."""
    files = [folder / "files" / f"{index:08d}.jpg" for index in range(count)]
    (folder / "files").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    if not (folder / "lmdb").exists():
        for path in files:
            path.write_bytes(picture(random))

        def records() -> Iterator[tuple[bytes, bytes]]:
            for index, path in enumerate(files):
                datum = Datum(encoded=True, data=path.read_bytes(), label=index % 1000)
                yield b"%08d" % index, datum.SerializeToString()

        write_lmdb(folder / "lmdb", records(), force=False)
    return files


class Files(Dataset):
    """Crops (3, 227, 227) uint8 and labels of JPEG files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        top, left, mirrored = torch.randint(1 << 30, (3,)).tolist()
        top, left = top % (SIZE - CROP + 1), left % (SIZE - CROP + 1)
        with Image.open(self.files[index]) as image:
            part = image.convert("RGB").crop((left, top, left + CROP, top + CROP))
        if mirrored % 2:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous(), index % 1000


class Endless(Sampler):
    """0, 1, ... and again from 0."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(self.count)


def loader(files: list[Path], batch: int, workers: int, device: torch.device) -> Callable[[], Tensor]:
    """The next batch of a DataLoader, as a careful user gets it."""
    pin = device.type == "cuda"
    batches = iter(DataLoader(Files(files), batch, sampler=Endless(len(files)), num_workers=workers, pin_memory=pin))
    mean = torch.tensor(MEAN, device=device).reshape(3, 1, 1)

    def step() -> Tensor:
        images, labels = next(batches)
        labels.to(device, torch.float32, non_blocking=pin)
        return images.to(device, non_blocking=pin).float().sub_(mean)

    return step


def make_feed(folder: Path, batch: int, workers: int, device: torch.device, budget: int) -> Feed:
    """The Data layer over the LMDB."""
    message = text_format.Parse(NET % (CROP, *MEAN, batch, AHEAD), NetParameter()).layer[0]
    spec = LayerSpec(message.name, message.type, (), tuple(message.top), message, "layer 'data'", TRAIN)
    return database_feed(spec, FeedContext(folder, device, 1, budget, workers))


def private_mib() -> float:
    """Memory of this process alone, without the files that it maps."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def memory(feed: Feed, batches: int) -> float:
    """The most MiB that the process grew by while the feed handed out `batches`."""
    before, most = private_mib(), 0.0
    for _ in range(batches):
        feed.next()
        most = max(most, private_mib() - before)
    return most


def timed(step: Callable[[], object], batches: int, waiting: int, device: torch.device) -> float:
    """Seconds for `batches` calls, after `waiting` others that only empty the queues."""
    for _ in range(waiting):
        step()
    started = time.perf_counter()
    for _ in range(batches):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Runs the comparison and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="folder for the images, kept (default: a temporary one)")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="0: as many as cores, at most 8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=24, help="per round and contestant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    workers, device = args.workers or default_workers(), torch.device(args.device)
    prepare(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.cache or temporary).resolve()
        files = make(folder, args.images)
        decoded = args.images * SIZE * SIZE * 3
        feed = make_feed(folder, args.batch, workers, device, decoded // 10)
        grown = memory(feed, args.images // args.batch)
        waiting = max(AHEAD, 2 * workers)  # a DataLoader prepares two batches per worker
        steps = {"forcereg": feed.next, "DataLoader": loader(files, args.batch, workers, device)}
        speed: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.rounds):
            for name, step in steps.items():
                seconds = timed(step, args.batches, waiting, device)
                speed[name].append(args.batches * args.batch / seconds)
        feed.close()
        size = statistics.mean(path.stat().st_size for path in files[:100]) / 1024
    where = f"{os.cpu_count()} cores, {device}"
    print(f"{args.images} JPEGs of {size:.1f} KiB, batch {args.batch}, {workers} workers, {where}")
    report(speed, decoded / 2**20, grown, args)


def report(speed: dict[str, list[float]], decoded: float, grown: float, args: argparse.Namespace) -> None:
    """The table and, if asked for, the JSON file."""
    median = {name: statistics.median(values) for name, values in speed.items()}
    print(f"{'':12}{'images/s':>10}{'min':>8}{'max':>8}{'/ DataLoader':>14}")
    for name, value in median.items():
        low, high = min(speed[name]), max(speed[name])
        print(f"{name:12}{value:10.0f}{low:8.0f}{high:8.0f}{value / median['DataLoader']:14.2f}")
    print(f"decoded set {decoded:.0f} MiB, budget {decoded / 10:.0f} MiB, most memory while streaming {grown:.0f} MiB")
    if args.json:
        from forcereg.system.files import write_text

        figures = {"median_images_per_s": median, "set_mib": decoded, "grown_mib": grown, "torch": torch.__version__}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
