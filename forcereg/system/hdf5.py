"""HDF5 files from outside: what they hold is judged before HDF5 follows, starts or reserves anything for it.

Left to itself HDF5 reads values from whatever file a dataset or link names, loads filters from shared libraries,
follows a dataset that is its own source until the stack ends, and reserves the memory that a shape declares. So members
are opened by a `Reader` alone, and only plain groups and datasets whose values lie in the file come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import BinaryIO, TypeAlias

import h5py
import numpy as np

from forcereg.system.hdf5text import REFERENCE, Texts
from forcereg.system.memory import free_memory

Member: TypeAlias = h5py.Group | h5py.Dataset

DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
"""What h5py raised for files in which bytes of every part were changed.

A link that leads nowhere gives None, hence AttributeError; a number may lack its value, hence IndexError.
"""
MOST = 1 << 17
"""Members that a file may have; a net of 1,000 layers has some 5,000."""
DEEPEST = 64
"""Groups within groups; the `/`s in a layer's name make some, too."""
SPARE = 64 << 20
"""Bytes of values that a file may declare without holding anything for them, as unwritten rows are."""
RATIO = 1032
"""How many times their bytes in the file compressed values may take: deflate can't do more."""
_ATTRIBUTES = 1000
_WIDEST = 16  # bytes of a number
_FILTERS = frozenset((
    h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_LZF,
))  # fmt: skip


class Refused(ValueError):
    """What stands in a file and isn't read: which member, what it is, what was expected."""


class Reader:
    """Members of one open file and their values; what it may take of memory is counted over all of them.

    `size`: the file's bytes; `raw`: the open file, without which no text is read. All methods raise Refused, and one of
    DAMAGE for what HDF5 itself finds wrong.
    """

    def __init__(self, file: h5py.File, size: int, raw: BinaryIO | None = None) -> None:
        self.root: h5py.Group = file["/"]
        # Texts reckons with 8-byte addresses from the file's start
        plain = not file.userblock_size and file.id.get_create_plist().get_sizes() == (8, 8)
        self._texts = Texts(raw, size) if raw is not None and plain else None
        self._stored, self._spare, self._count = size, SPARE, 0
        self._walked: set[int] = set()

    def find(self, path: str) -> Member | None:
        """What lies at a path from the root, None if nothing does."""
        found: Member = self.root
        for part in path.split("/"):
            if not isinstance(found, h5py.Group) or not found.id.links.exists(_bytes(part or ".")):
                return None
            found = self._open(found, part) if part not in ("", ".") else found
        return found

    def members(self, group: h5py.Group) -> Iterator[tuple[str, Member]]:
        """The members of a group by name. Each group is asked once: what lies within itself has no end."""
        place = h5py.h5o.get_info(group.id).addr
        self._count += len(group)
        # by address: a hard link makes a group its own member under another name
        if place in self._walked:
            raise Refused(f"{_shown(group.name)} lies in two places; expected each group in one")
        if self._count > MOST or text_of(group.name).count("/") > DEEPEST:
            raise Refused(f"holds more than {MOST:,} members or {DEEPEST} groups within groups; expected a plain file")
        self._walked.add(place)
        for name in map(text_of, group):
            yield name, self._open(group, name)

    def values(self, dataset: h5py.Dataset) -> np.ndarray:
        """The numbers of a dataset in the machine's byte order."""
        if is_text(dataset):
            raise Refused(f"{_shown(dataset.name)} is a text; expected numbers")
        self.reserve(dataset)
        # behind reserve, which has judged what this allocates
        values = np.asarray(dataset[()])
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def reserve(self, dataset: h5py.Dataset) -> None:
        """Counts a dataset's values as read. Raises Refused if the file is too small for them, or the memory."""
        settings, item = dataset.id.get_create_plist(), dataset.id.get_type().get_size()
        chunked = settings.get_layout() == h5py.h5d.CHUNKED
        # HDF5 takes memory for a whole chunk, however few of its values there are
        needed = item * max(prod(dataset.shape), prod(settings.get_chunk()) if chunked else 0)
        # datasets may claim the same bytes: all together they have no more than the file
        stored = min(dataset.id.get_storage_size(), self._stored)
        self._stored -= stored
        self._spare -= max(0, needed - stored * (RATIO if settings.get_nfilters() else 1))
        where = f"{_shown(dataset.name)} declares {needed:,} bytes of values"
        if self._spare < 0:
            raise Refused(f"{where}, in shape {list(dataset.shape)}, but the file holds {stored:,} bytes for them")
        if needed > SPARE and needed > (free := free_memory()):
            raise Refused(f"{where}, but only {free:,} bytes of memory are free")

    def texts(self, group: h5py.Group) -> dict[str, str]:
        """The attributes of a group that are one text each; others aren't looked at."""
        count = h5py.h5a.get_num_attrs(group.id)
        if count > _ATTRIBUTES:
            raise Refused(f"{_shown(group.name)} has {count:,} attributes; expected at most {_ATTRIBUTES:,}")
        found: dict[str, str] = {}
        if self._texts is None:
            return found
        references = self._texts.attributes(h5py.h5o.get_info(group.id).addr)
        for index in range(count):
            attribute = h5py.h5a.open(group.id, index=index)
            kind = attribute.get_type()
            scalar = attribute.get_space().get_simple_extent_type() == h5py.h5s.SCALAR
            is_plain = scalar and kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
            if is_plain and attribute.name in references:
                text = self._texts.text(references[attribute.name])
                self._take(len(text), "the attributes")
                found[text_of(attribute.name)] = text_of(text)
        return found

    def text(self, dataset: h5py.Dataset) -> bytes:
        """The single text that a dataset holds."""
        where = _shown(dataset.name)
        if not is_text(dataset) or prod(dataset.shape) != 1:  # many texts may be one in the file
            raise Refused(f"{where} holds {prod(dataset.shape):,} values of type {dataset.dtype}; expected one text")
        if not dataset.id.get_type().is_variable_str():
            self.reserve(dataset)
            return bytes(np.asarray(dataset[()]).item())
        place = dataset.id.get_offset()
        if self._texts is None or place is None:
            raise Refused(f"{where} is a text in chunks or behind a user block; expected a plain one")
        text = self._texts.text(self._texts.at(place, REFERENCE))
        self._take(len(text), where)
        return text

    def _take(self, length: int, where: str) -> None:
        """Counts bytes of text; many may be the same in the file."""
        if length > self._stored + self._spare:
            raise Refused(f"{where}: texts of more bytes than the file has")
        self._stored -= length

    def _open(self, group: h5py.Group, name: str) -> Member:
        """A member behind a plain link, its values not read."""
        where = _shown(f"{text_of(group.name).rstrip('/')}/{name}")
        if group.id.links.get_info(_bytes(name)).type != h5py.h5l.TYPE_HARD:
            raise Refused(f"{where} is a link, which isn't followed; expected the dataset or group itself")
        found = group[_bytes(name)]
        if isinstance(found, h5py.Group):
            return found
        if not isinstance(found, h5py.Dataset):
            raise Refused(f"{where} is a type; expected a dataset or group")
        _check(where, found)
        return found


def _check(where: str, dataset: h5py.Dataset) -> None:
    """Raises Refused for a dataset whose values lie elsewhere, need foreign code, or aren't numbers or one text."""
    settings, kind = dataset.id.get_create_plist(), dataset.id.get_type()
    if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
        raise Refused(f"{where} keeps its values in another file, which isn't read; expected them in this one")
    filters = [settings.get_filter(index) for index in range(settings.get_nfilters())]
    for number, _, _, name in filters:
        if number not in _FILTERS:
            text = _shown(name.decode("utf-8", "replace"))
            raise Refused(f"{where} needs filter {number} {text}, which isn't loaded; expected gzip, lzf, szip or none")
    found, numbers = kind.get_class(), (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
    # h5py writes bools as an enum of two
    is_bool = found == h5py.h5t.ENUM and kind.get_nmembers() == 2 and dataset.dtype.kind == "b"
    if not (is_bool or is_text(dataset) or (found in numbers and kind.get_size() <= _WIDEST)):
        raise Refused(f"{where} holds neither numbers nor text; expected integers or floats")
    if dataset.shape is None:
        raise Refused(f"{where} has no values; expected some")


def is_text(dataset: h5py.Dataset) -> bool:
    """Whether a dataset holds text."""
    return bool(dataset.id.get_type().get_class() == h5py.h5t.STRING)


def text_of(name: str | bytes) -> str:
    """A name as text, whatever its bytes; h5py gives those of one that isn't UTF-8."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _shown(name: str | bytes) -> str:
    name = text_of(name)
    return f"'{name}'" if len(name) <= 200 else f"'{name[:200]}...'"
