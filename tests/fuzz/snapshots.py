"""Models, states and data files, damaged or hostile: read or refused in one line, in memory that they are worth."""

from __future__ import annotations

import contextlib
import functools
import random
import resource
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from forcereg.data.feed import FeedContext
from forcereg.data.hdf5_data import HDF5Feed
from forcereg.errors import ForceregError
from forcereg.net.convert import convert
from forcereg.net.load import load_net, net_shapes, net_spec
from forcereg.net.read import asked_net
from forcereg.schema.text import parse_net
from forcereg.snapshot import (
    ModelFile,
    StateFile,
    load_into,
    modern,
    net_message,
    read,
    write_model,
    write_state,
)
from tests.data.lmdbs import data_spec
from tests.fuzz.edits import FORMS, VALUES, edit

NET = """
name: "n"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
layer { name: "in/c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" inner_product_param { num_output: 3 } }
"""
KINDS = ("m.caffemodel.h5", "m.caffemodel", "s.solverstate.h5", "s.solverstate", "d.h5")
MEMORY = 400 << 20
"""Bytes by which the peak may grow: a file may declare 64 MiB without holding them, in two forms at once."""


@functools.cache
def prepare(folder: Path) -> Path:
    """One file of each kind, and the list of the data file."""
    torch.manual_seed(0)
    net = load_net(NET, seed=1)
    blobs = {name: {i: blob.detach().numpy() for i, blob in enumerate(own)} for name, own in net.params.items()}
    attrs = {"forcereg_net": NET, "forcereg_input_shapes": '{"x": [1, 2, 6, 6]}'}
    write_model(folder / KINDS[0], blobs, blobs, attrs)
    spec = net_spec(parse_net(NET), "TEST")
    write_model(folder / KINDS[1], blobs, blobs, attrs, net_message(spec))
    extra = {"feeds": {"0": {"name": "train/d", "state": {"cursor": 3}}}, "losses": np.zeros(3, "f4"), "loss_count": 3}
    history = [values for own in blobs.values() for values in own.values()]
    for binary in (False, True):
        write_state(folder / KINDS[2 + binary], 5, 1, KINDS[binary], history, extra, binary)
    with h5py.File(folder / KINDS[4], "w") as file:
        file["data"] = np.arange(60, dtype=np.float32).reshape(10, 6)
        file.create_dataset(
            "label", data=np.arange(10), chunks=(4,), maxshape=(None,), compression="gzip", shuffle=True
        )
        file["group/more"] = np.arange(20, dtype=np.uint8).reshape(10, 2)
    (folder / "list.txt").write_text("bad_d.h5")
    return folder


def structure(path: Path, chance: random.Random) -> str:
    """An edit of an HDF5 file's members."""
    with h5py.File(path, "r+") as file, np.errstate(all="ignore"):
        return ", ".join(edit(file, chance, FORMS + VALUES) for _ in range(chance.choice((1, 1, 2))))


def flips(path: Path, chance: random.Random) -> str:
    """Bytes changed, most of them where the structure is."""
    content = bytearray(path.read_bytes())
    places = [
        chance.randrange(min(len(content), chance.choice((100, 2000, 1 << 30))))
        for _ in range(chance.choice((1, 2, 8)))
    ]
    for place in places:
        content[place] = chance.choice(
            (0, 1, 127, 255, chance.randrange(256), content[place] ^ 1 << chance.randrange(8))
        )
    path.write_bytes(content)
    return f"flips at {places}"


def moved(path: Path, chance: random.Random) -> str:
    """A piece put in, taken out, or copied elsewhere; a cut."""
    content = path.read_bytes()
    start, length = chance.randrange(len(content)), chance.choice((1, 2, 8, 100, 1000))
    piece = content[start : start + length]
    to = chance.randrange(len(content))
    changed = chance.choice((
        content[:start] + content[start + length :],
        content[:to] + piece + content[to:],
        content[:to] + piece + content[to + length :],
        content[:start],
        content[:start] + chance.randbytes(length) + content[start:],
    ))  # fmt: skip
    path.write_bytes(changed or b"\0")
    return f"moved {start} {length} {to}"


def lengths(path: Path, chance: random.Random) -> str:
    """A number of 4 or 8 bytes, or one of variable length, becomes a large one."""
    content = bytearray(path.read_bytes())
    place, size = chance.randrange(len(content)), chance.choice((4, 8))
    value = chance.choice((0, 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
    content[place : place + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    path.write_bytes(content)
    return f"{value} in {size} bytes at {place}"


def attempt(chance: random.Random, folder: Path) -> None:
    kind = chance.choice(KINDS)
    path = prepare(folder) / f"bad_{kind}"
    content = (folder / kind).read_bytes()
    path.write_bytes(content if kind == KINDS[4] else content[:-16])  # without the checksum
    harms: list[Callable[[Path, random.Random], str]] = [flips, moved, lengths]
    if kind.endswith(".h5"):
        harms += [structure] * 4
    done = f"{kind}: {chance.choice(harms)(path, chance)}"
    if chance.random() < 0.5 and kind != KINDS[4]:  # and with one
        body = path.read_bytes()
        path.write_bytes(body + b"forcereg%08x" % zlib.crc32(body))
    before = peak(reset=True)
    try:
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("ignore", UserWarning)  # layers that don't match are told
            use(path)
    except ForceregError as error:
        assert "\n" not in str(error), done
    except Exception as error:
        raise AssertionError(f"{done}: {error!r}") from error
    assert peak() - before < MEMORY, f"{done}: {peak() - before:,} bytes"


def use(path: Path) -> None:
    """What is done with such a file. Raises ForceregError."""
    if path.name.endswith(KINDS[4]):
        text = 'top: "data" top: "label" top: "group/more" hdf5_data_param { source: "list.txt" batch_size: 4 }'
        feed = HDF5Feed(
            data_spec(f'layer {{ name: "d" type: "HDF5Data" {text} }}'),
            FeedContext(path.parent, torch.device("cpu"), 1),
        )
        feed.next()
        return
    found = read(path)
    other = path.name.removesuffix(".h5") + ("" if path.name.endswith(".h5") else ".h5")
    with contextlib.suppress(ForceregError):
        convert(path, path.with_name(f"out_{other}"))
    if isinstance(found, StateFile):
        assert all(values.dtype == np.float32 for values in found.history)
        return
    assert isinstance(found, ModelFile)
    file, root = asked_net(None, found)
    net_shapes(file, found.input_shapes, root)
    net = load_net(NET)
    load_into(net.params, modern(found, {}), net.shared)


def peak(reset: bool = False) -> int:
    """The most bytes of memory that the process has held since the last reset, where the system can reset it."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
