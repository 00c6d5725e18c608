"""Edits of HDF5 files that know what is in them: entries of another type, shape or value, links, or none at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

Edit = Callable[[h5py.Group, str, random.Random], None]
NUMBERS = (0, 1, -1, 5, 255, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 0.5, -1.5, np.nan, np.inf, -np.inf, 1e38, 1e300, 5e-324)
TEXTS = ("", "5", "-1", "nan", "train/d", "\x1b[31m", "a" * 5000, "ä\u2028\U0001f600", "velocity", "squared gradients")
SHAPES = ((), (0,), (1,), (1, 1), (2,), (5056,), (16,), (3, 0, 2), (1,) * 32)
DTYPES = ("i1", "u1", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i8", "?", "c8", "S5", "i4,f4")


def members(group: h5py.Group, depth: int = 0) -> list[tuple[h5py.Group, str]]:
    """Every member below a group, with the group that it is in; links aren't followed, circles not for long."""
    found = []
    for name in group:
        found.append((group, name))
        plain = group.get(name, getclass=True, getlink=True) is h5py.HardLink
        if plain and depth < 6 and isinstance(group[name], h5py.Group):
            found += members(group[name], depth + 1)
    return found


def drop(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]


def number(group: h5py.Group, name: str, chance: random.Random) -> None:
    value = chance.choice(NUMBERS)
    put(group, name, np.array(value, np.uint64 if value >= 2**63 else np.int64))


def floating(group: h5py.Group, name: str, chance: random.Random) -> None:
    put(group, name, np.array(chance.choice(FLOATS), chance.choice(("f4", "f8"))))


def text(group: h5py.Group, name: str, chance: random.Random) -> None:
    value = chance.choice(TEXTS)
    put(group, name, chance.choice((value, np.bytes_(value.encode()), [value, value])))


def random_array(group: h5py.Group, name: str, chance: random.Random) -> None:
    dtype = np.dtype(chance.choice(DTYPES))
    count = int(np.prod(shape := chance.choice(SHAPES)))
    put(group, name, np.frombuffer(chance.randbytes(count * dtype.itemsize), dtype).reshape(shape))


def retyped(group: h5py.Group, name: str, chance: random.Random) -> None:
    values = np.asarray(value_of(group, name))
    put(group, name, values.astype(chance.choice(DTYPES[:13])) if values.dtype.kind in "biuf" else 7)


def reshaped(group: h5py.Group, name: str, chance: random.Random) -> None:
    values = np.asarray(value_of(group, name))
    ways: list[Callable[[], np.ndarray]] = [
        lambda: values[None],
        lambda: values.reshape(-1),
        lambda: values.reshape(-1)[:-1],
        lambda: np.resize(values, values.size + 1),
        lambda: np.resize(values, (2, *values.shape)),
        lambda: values.reshape(-1)[:0],
        lambda: values.T,
    ]
    put(group, name, chance.choice(ways)())


def one_value(group: h5py.Group, name: str, chance: random.Random) -> None:
    """A value somewhere in an array."""
    values = np.array(value_of(group, name))
    if not values.size or values.dtype.kind not in "iuf":
        return
    info = np.iinfo(values.dtype) if values.dtype.kind in "iu" else None
    new = chance.choice([v for v in NUMBERS if info.min <= v <= info.max] if info else FLOATS)
    with np.errstate(all="ignore"):
        values.reshape(-1)[chance.randrange(values.size)] = new
    put(group, name, values)


def swapped(group: h5py.Group, name: str, chance: random.Random) -> None:
    """A group where a dataset was."""
    del group[name]
    inner = group.create_group(name)
    if chance.random() < 0.5:
        inner[chance.choice(("0", "name", "state", "x"))] = chance.choice((0, 1.5, "text"))


def exchanged(group: h5py.Group, name: str, chance: random.Random) -> None:
    """Another member's values."""
    other, key = chance.choice(members(group.file))
    if isinstance(other.get(key), h5py.Dataset):
        put(group, name, other[key][()])


def renamed(group: h5py.Group, name: str, chance: random.Random) -> None:
    new = chance.choice(
        ("0", "1", "01", "-1", "7", "99999999999999999999", "x", "data", "history", "a" * 300, name + " ")
    )
    if new not in group:
        group.move(name, new)


def added(group: h5py.Group, name: str, chance: random.Random) -> None:
    new = chance.choice(("0", "1", "2", "x", "iter", "forcereg", "cuda", "scale", "ranks", "clipped"))
    if new not in group:
        random_array(group, new, chance)


VALUES: tuple[Edit, ...] = (
    drop, number, floating, text, random_array, retyped, reshaped, one_value, swapped, exchanged, renamed, added,
)  # fmt: skip


def soft(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    group[name] = h5py.SoftLink(chance.choice(("/", ".", "/data", "/nowhere", name, f"{group.name}/{name}", "/iter")))


def outside(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    group[name] = h5py.ExternalLink(chance.choice(("/etc/passwd", "/dev/zero", "a.h5")), "/")


def circle(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    group[name] = chance.choice((group, group.file["/"], group.parent))


def stored_outside(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    place = chance.choice(("/etc/passwd", "/dev/zero", "nowhere"))
    group.create_dataset(name, (4,), "f4", external=[(place, 0, chance.choice((16, h5py.h5f.UNLIMITED)))])


def virtual(group: h5py.Group, name: str, chance: random.Random) -> None:
    path = f"{group.name.rstrip('/')}/{name}"
    del group[name]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[...] = h5py.VirtualSource(chance.choice((".", "x.h5", "/etc/passwd")), chance.choice((path, "/iter")), (4,))
    group.create_virtual_dataset(name, layout)


def declared(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    shape = chance.choice(((1 << 40,), (1 << 30,), (1, 1 << 20, 1 << 20), (1 << 26,)))
    options = chance.choice(({}, {"chunks": True}, {"chunks": True, "compression": "gzip"}))
    group.create_dataset(name, shape, chance.choice(("f4", "u1", "f8")), **options)


def foreign(group: h5py.Group, name: str, chance: random.Random) -> None:
    del group[name]
    kinds = (h5py.ref_dtype, h5py.regionref_dtype, h5py.vlen_dtype(np.float32), h5py.enum_dtype({"A": 1, "B": 2}), "V8")
    group.create_dataset(name, chance.choice(((), (2,))), chance.choice(kinds))


def packed(group: h5py.Group, name: str, chance: random.Random) -> None:
    """The same values in chunks, compressed."""
    values = np.asarray(value_of(group, name))
    if values.ndim and values.size and values.dtype.kind in "iuf":
        del group[name]
        group.create_dataset(name, data=values, chunks=True, compression=chance.choice(("gzip", "lzf")), shuffle=True)


def attribute(group: h5py.Group, name: str, chance: random.Random) -> None:
    where = chance.choice((group.file, group, group[name]))
    key = chance.choice(("forcereg_net", "forcereg_input_shapes", "forcereg_seed", "x"))
    values: list[Any] = [
        7,
        np.zeros(1000),
        *TEXTS,
        "[" * 5000,
        "{" * 5000,
        "layer {" * 500,
        np.bytes_(b"\xff"),
        h5py.Empty("f4"),
    ]
    where.attrs[key] = chance.choice(values)


FORMS: tuple[Edit, ...] = (
    soft, outside, circle, stored_outside, virtual, declared, foreign, packed, attribute,
)  # fmt: skip


def put(group: h5py.Group, name: str, value: Any) -> None:
    if name in group:
        del group[name]
    group[name] = value


def value_of(group: h5py.Group, name: str) -> Any:
    found = group.get(name)
    return found[()] if isinstance(found, h5py.Dataset) and not found.is_virtual and found.size < 1 << 20 else 3.0


def edit(file: h5py.File, chance: random.Random, edits: tuple[Edit, ...], where: str = "/") -> str:
    """Makes one edit to a member below `where`; what was done, for people."""
    found = members(file[where])
    if not found:
        return "nothing"
    group, name = chance.choice(found)
    chosen, path = chance.choice(edits), f"{group.name.rstrip('/')}/{name}"
    try:
        chosen(group, name, chance)
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        return f"{chosen.__name__} {path} failed: {error}"  # what h5py can't make or reach
    return f"{chosen.__name__} {path}"
