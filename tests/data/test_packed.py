"""Compressed streams and tars that are hostile or damaged, by themselves and below the converters that read them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg.data.cifar import read_cifar10
from forcereg.data.idx import IMAGES_MAGIC, read_idx
from forcereg.data.packed import read_up_to, tar_files, unpacked
from forcereg.errors import ForceregError
from tests.conftest import RunCli
from tests.data.bombs import png
from tests.nursery import Nursery

PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.mark.parametrize("kind", PACK)
def test_streams_are_read_to_their_end(kind: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 4, 300_000, np.uint8).tobytes()
    path = tmp_path / "file"
    two = PACK[kind](data[:100_000]) + PACK[kind](data[100_000:])
    path.write_bytes(two)
    with unpacked(path) as stream:
        assert read_up_to(stream, 10) == data[:10]
        assert read_up_to(stream, 1 << 30) == data[10:]


def test_streams_of_xz_may_be_padded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4))
    with unpacked(tmp_path / "file") as stream:
        assert read_up_to(stream, 99) == b"onetwo"


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_cut_stream_is_damage(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PACK[kind](bytes(np.random.default_rng(0).bytes(9999)))[:-20])
    with pytest.raises((OSError, EOFError)), unpacked(tmp_path / "file") as stream:
        read_up_to(stream, 1 << 20)


def test_a_huge_dictionary_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed = bytearray(lzma.compress(b"x", filters=[{**filters[0], "dict_size": 1 << 20}]))
    at = 12 + 4  # of the dictionary's size in the first block's header
    assert packed[at] == 16
    packed[at] = 38  # 2 GiB
    size = (packed[12] + 1) * 4
    packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    (tmp_path / "src").write_bytes(packed)
    with pytest.raises(ForceregError, match=r"src: not a readable folder or tar file .*[Mm]emory"):
        read_cifar10(tmp_path / "src")


def tar_of(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(*parts: bytes | int) -> bytes:
    """The parts, each packed as xz by itself; numbers are that many MiB of zeros."""
    return b"".join(lzma.compress(part, preset=0) if isinstance(part, bytes) else _zeros(part) for part in parts)


@cache
def _zeros(mib: int) -> bytes:
    pack = lzma.LZMACompressor(preset=0)
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(mib)) + pack.flush()


MANY = 100
SIZE = MANY << 20
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a batch": (lambda: zeros(header("data_batch_1.bin", SIZE), MANY), r"data_batch_1\.bin would be 100 MiB"),
    "an image": (lambda: zeros(header("train/cat/1.png", SIZE), MANY), r"train/cat/1\.png would be 100 MiB"),
    "another file": (lambda: zeros(header("readme", SIZE), MANY), "unpacks to more than 64 MiB"),
    "behind its end": (lambda: zeros(tar_of(("test/cat/1.png", png(2, 2))), MANY), "unpacks to more than 64 MiB"),
    "a long name": (lambda: zeros(header("x", SIZE, tarfile.GNUTYPE_LONGNAME), MANY), "more than 1 MiB of headers"),
    "pax": (lambda: zeros(header("x", SIZE, tarfile.XHDTYPE), MANY), "more than 1 MiB of headers"),
    "pax for all": (lambda: zeros(header("x", SIZE, tarfile.XGLTYPE), MANY), "more than 1 MiB of headers"),
    "headers of headers": (
        lambda: zeros((header("x", 20, tarfile.XHDTYPE) + b"20 comment=1234567\n\n".ljust(512, b"\0")) * 2000),
        "headers|not a readable",
    ),
    "a size below 0": (lambda: zeros(header("train/cat/1.png", -99), bytes(1024)), "train/cat/1.png"),
    "many images": (
        lambda: zeros(
            b"".join(tar_of((f"train/cat/{number}.png", png(512, 512)))[:-9216] for number in range(40)), bytes(1024)
        ),
        "more than 2[0-9] MiB of images so far",
    ),
}


@pytest.mark.parametrize("bomb", TARS)
def test_tars_that_unpack_to_much_are_refused_in_little_memory(bomb: str, tmp_path: Path, nursery: Nursery) -> None:
    content, expected = TARS[bomb]
    (tmp_path / "cifar.tar.xz").write_bytes(content())
    code = """
import resource, sys
from pathlib import Path
from forcereg.data.budget import DECODING
from forcereg.data.cifar import read_cifar10
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
DECODING.limit = 64 << 20
try:
    read_cifar10(Path("cifar.tar.xz"))
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = nursery.run("-c", code, cwd=tmp_path)
    assert not done.stderr
    said, taken = done.stdout.splitlines()
    assert said.startswith("ForceregError cifar.tar.xz: "), said
    assert re.search(expected, said)
    assert int(taken) < 128 << 10


def test_many_members_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(b"".join(header(f"{n}", 0) for n in range(3000)) + bytes(1024))
    seen = []
    assert list(tar_files(tmp_path / "tar", lambda name: seen.append(name))) == []
    assert len(seen) == 3000


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(9), "what its header promises, .* values, takes .*--decode-budget"),
        (b"\0\0\x08\x03" + b"\0\0\0\2" * 3 + bytes(1 << 22), "holds more than 8 values, its header promises 8"),
        (b"\0\0\x08\x03" + b"\0\0\1\0" * 3 + bytes(1 << 10), "holds 1024 values, its header promises 16777216"),
    ],
    ids=["promises", "holds more", "holds less"],
)
def test_idx_files_are_judged_by_their_header(content: bytes, expected: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ForceregError, match=expected):
        read_idx(tmp_path, "train-images", IMAGES_MAGIC)


def batches(seed: int = 0, rows: int = 4) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    random = np.random.default_rng(seed)
    for name in NAMES:
        yield name, random.integers(0, 256, (rows, 3072), np.uint8), random.integers(0, 10, rows).tolist()


def python2(name: str, data: np.ndarray, labels: list[int]) -> bytes:
    """The instructions that the files of the Python version hold: texts as bytes, protocol 2."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87Rq\x03"
        b"(K\x01K" + bytes([len(data)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87Rq\x05"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    numbers = b"]q\x06(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    files = b"](" + b"".join(text(b"%d.png" % number) for number in range(len(labels))) + b"e"
    return (
        b"\x80\x02}q\x00(" + text(b"batch_label") + text(name.encode()) + text(b"labels") + numbers
        + text(b"data") + array + text(b"filenames") + files + b"u."
    )  # fmt: skip


@pytest.mark.parametrize("form", ["python2", 2, 3, 4, 5], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
def test_the_python_version_is_the_binary_version(form: Any, packed: bool, tmp_path: Path) -> None:
    python, binary = tmp_path / "cifar-10-batches-py", tmp_path / "bin"
    python.mkdir()
    binary.mkdir()
    for name, data, labels in batches():
        rows = np.hstack([np.array(labels, np.uint8)[:, None], data])
        (binary / f"{name}.bin").write_bytes(rows.tobytes())
        batch = {b"batch_label" if form == 3 else "batch_label": name, "labels": labels, "data": data}
        content = python2(name, data, labels) if form == "python2" else pickle.dumps(batch, form)
        (python / name).write_bytes(content)
    (python / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    (python / "readme.html").write_text("read me")
    source = python
    if packed:
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(python, arcname=python.name)
    for one, other in zip(read_cifar10(source), read_cifar10(binary), strict=True):
        for found, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


def reduced(function: str, args: bytes = b"(X\x04\0\0\0ranat") -> bytes:
    module, _, name = function.rpartition(".")
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + args + b"R."


DATA = np.zeros((1, 3072), np.uint8)
PICKLES = {
    "os.system": (reduced("os.system"), "it names os.system"),
    "eval": (reduced("builtins.eval"), "it names builtins.eval"),
    "numpy's loader": (reduced("numpy.load"), "it names numpy.load"),
    "attributes of what is known": (reduced("numpy.ndarray.tofile"), "it names numpy.ndarray.tofile"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"it names numpy.ndarray\.tofile"),
    "a codec": (reduced("_codecs.encode", b"(X\x01\0\0\0aX\x03\0\0\0zipt"), "it encodes text"),
    "a function changed": (b"\x80\x02c_codecs\nencode\n}b.", "it changes a function"),
    "an array's class changed": (b"\x80\x02cnumpy\nndarray\n}b.", "not a batch"),
    "an extension": (b"\x80\x02\x82\x01.", "it holds EXT1"),
    "an object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "it holds NEWOBJ"),
    "a memo of billions": (b"\x80\x02]r\xff\xff\xff\x7f.", "it holds an entry numbered 2147483647"),
    "bytes that aren't there": (b"\x80\x05\x8e\xff\xff\xff\xff\x0f\0\0\0.", "not a batch"),
    "an array that isn't there": (b"\x80\x05\x96\xff\xff\xff\xff\x0f\0\0\0.", "not a batch"),
    "many steps": (b"\x80\x02(" + b"]" * 1_100_000 + b"l.", "more than 1,000,000 steps"),
    "depth": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "it holds a list"),
    "not a dict": (pickle.dumps([1, 2], 2), "it holds a list"),
    "nothing": (b"", "not a batch"),
    "text": (b"hello", "not a batch"),
    "no data": (pickle.dumps({"labels": [1]}, 2), "no 'data'"),
    "no labels": (pickle.dumps({"data": DATA}, 2), "no 'labels'"),
    "other data": (pickle.dumps({"data": [1], "labels": [1]}, 2), "its data is no array"),
    "floats": (pickle.dumps({"data": DATA.astype(np.float32), "labels": [1]}, 2), "its data isn't of bytes"),
    "objects": (pickle.dumps({"data": np.array([[None]]), "labels": [1]}, 2), "its data isn't of bytes"),
    "columns": (pickle.dumps({"data": DATA[:, :9].copy(), "labels": [1]}, 2), r"its data is \(1, 9\)"),
    "fortran": (pickle.dumps({"data": np.asfortranarray(np.tile(DATA, (2, 1))), "labels": [1, 2]}, 2), "C's order"),
    "counts": (pickle.dumps({"data": DATA, "labels": [1, 2]}, 2), "1 images and 2 labels"),
    "labels of text": (pickle.dumps({"data": DATA, "labels": ["cat"]}, 2), "labels aren't a list of numbers"),
    "labels of CIFAR-100": (pickle.dumps({"data": DATA, "labels": [77]}, 2), "label 77 found, expected 0 to 9"),
    "no images": (pickle.dumps({"data": DATA[:0], "labels": []}, 4), "0 images and 0 labels"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_run_nothing_and_are_checked(name: str, tmp_path: Path) -> None:
    content, expected = PICKLES[name]
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ForceregError, match=rf"^{tmp_path}: data_batch_1: .*{expected}"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_1", "train/cat/1.png"])
def test_pipes_are_not_waited_for(name: str, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "src/train/cat").mkdir(parents=True)
    os.mkfifo(tmp_path / "src" / name)
    done = run_cli("data", "cifar10", "src", "out", cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"forcereg: src/{name}: not a readable folder or tar file (it is a pipe, expected a regular file)\n"
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("data", "cifar10", "src.tar", "out"), "src.tar"),
        (("data", "mnist", "idx", "out"), "idx/train-images-idx3-ubyte"),
        (("data", "mnist", "idx", "out"), "idx/train-images-idx3-ubyte.gz"),
        (("data", "images", "list.txt", "out"), "list.txt"),
    ],
)
def test_converters_read_regular_files_only(
    make: Callable[[Path], None], args: tuple[str, ...], name: str, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "idx").mkdir()
    make(tmp_path / name)
    done = run_cli(*args, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{name}: " in done.stderr and "expected a regular file" in done.stderr
