"""Bundle recorded Caffe cases into one compact HDF5 file per group.

    python scripts/bundle_golden.py GOLDEN_DIR [tests/golden]

`GOLDEN_DIR/<group>/<case>.h5` becomes the HDF5 group `<case>` of `<group>.h5`, with the case's
attributes and datasets unchanged. A case that is a folder (`snapshots/<case>/`) holds `case.h5` and
the files that Caffe wrote; those go byte for byte into `<case>/files/<file name>`.
The same input gives the same bytes: nothing in the output depends on time or on directory order.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

GROUPS = ("data", "decompose", "fillers", "force", "layers", "lenet", "snapshots", "solver", "sparse")
COMPRESS_FROM = 512  # bytes; below it the chunk index costs more than compression saves


def write_array(target: h5py.Group, path: str, values: np.ndarray) -> None:
    """Store `values` under `path`, gzip-compressed unless tiny."""
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True, "chunks": values.shape}
    options = packed if values.nbytes >= COMPRESS_FROM else {}
    target.create_dataset(path, data=values, track_times=False, **options)


def copy_case(source: h5py.Group, target: h5py.Group) -> None:
    """Copy attributes, groups and datasets, recursively and in name order."""
    for name in sorted(source.attrs):
        target.attrs[name] = source.attrs[name]
    for name in sorted(source):
        item = source[name]
        if isinstance(item, h5py.Group):
            copy_case(item, target.create_group(name))
        else:
            write_array(target, name, item[()] if item.shape else np.asarray(item[()]))


def cases(folder: Path) -> Iterator[tuple[str, Path, list[Path]]]:
    """(case id, its HDF5 file, the other files of a folder case), by id."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            others = sorted(other for other in path.iterdir() if other.name != "case.h5")
            yield path.name, path / "case.h5", others
        elif path.suffix == ".h5":
            yield path.stem, path, []


def bundle(folder: Path, out: Path) -> int:
    """Write all cases of one group's folder into `out`; returns how many there were."""
    count = 0
    with h5py.File(out, "w", libver=("v110", "v110")) as target:  # h5py 3.10 reads it
        for name, case_file, others in cases(folder):
            group = target.create_group(name)
            with h5py.File(case_file) as source:
                copy_case(source, group)
            for other in others:
                write_array(group, f"files/{other.name}", np.frombuffer(other.read_bytes(), np.uint8))
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="Bundle recorded Caffe cases, one HDF5 file per group.")
    parser.add_argument("golden_dir", type=Path, metavar="GOLDEN_DIR")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", nargs="?", default=Path("tests/golden"))
    arguments = parser.parse_args()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        out = arguments.out_dir / f"{group}.h5"
        count = bundle(arguments.golden_dir / group, out)
        print(f"{out}: {count} cases, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
