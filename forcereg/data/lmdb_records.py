"""Records of an LMDB, read page by page with everything checked.

LMDB itself trusts the file that it maps: a damaged page ends the process by an assertion or an access out of bounds,
and a file that is cut while it is read by SIGBUS. Here nothing is mapped, and what doesn't fit is an error. The format
is that of LMDB 0.9 (version 1) on machines of 64 bits, little-endian.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from struct import Struct
from typing import NoReturn

from forcereg.data.budget import DECODING
from forcereg.data.records import Records, record_error
from forcereg.errors import ForceregError
from forcereg.system.files import open_file

MAGIC, VERSION = 0xBEEFC0DE, 1
_META = Struct("<II 16x 48x 4xHHQQQQQ QQ")
"""Magic, version; the main table's flags, depth, branch, leaf and overflow pages, entries, root; last page, txnid."""
_PAGE = Struct("<Q2xHHH")
"""A page's number, flags, and where its free space begins and ends."""
_NODE = Struct("<HHHH")
"""A node's size or child, low and high 16 bits, flags or the child's highest bits, and its key's size."""
_NUMBER = Struct("<Q")
_HEADER = _PAGE.size
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE, _KINDS = 1, 2, 4, 8, 0x6F
_BIG = 1
"""The flag of a node whose value has pages of its own."""
_DEEPEST = 32
_AHEAD = 64
"""Pages that are read at a time, at most, where they follow each other."""
_LARGE = 16
"""Pages of a value from which on it is read by itself, without a copy."""


class LmdbRecords(Records):
    """The records of the LMDB folder `path`; `len()` is their number.

    Raises ForceregError if the folder is missing, unreadable, damaged or empty; reading does where a page is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file = open_file(path / "data.mdb")
        except FileNotFoundError:
            raise ForceregError(f"no LMDB at {path} (no data.mdb there)") from None
        except OSError as error:
            reason = f"data.mdb cannot be opened ({error.strerror})"
            raise ForceregError(f"{path}: {reason}; check the path and its permissions") from error
        weakref.finalize(self, file.close).atexit = False  # a thread may still be reading then
        self._file = file.fileno()
        # of the open file: the path may be another one's by now
        stat = os.fstat(self._file)
        self.identity = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        self._read_header(stat.st_size)
        if self._count == 0:
            raise ForceregError(f"{path}: the LMDB is empty; expected at least one record, write it again")

    def __len__(self) -> int:
        return self._count

    def count(self, most: int | None = None) -> int:
        """See Records; known at once."""
        return self._count

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """See Records. Of the pages in front only the headers are looked at."""
        start %= self._count
        index = 0
        last = b""
        value_of, head_of, number_at = _Pages(self).value, _NODE.unpack_from, _NUMBER.unpack_from
        for pages, at, nodes in self._leaves():
            if index + len(nodes) > self._count:
                self._fail(f"more than the {self._count} records that its header promises")
            # a leaf in front of the start is skipped by its count alone
            if index + len(nodes) <= start:
                index += len(nodes)
                continue
            end = at + self._page_size
            for node in nodes[start - index :] if index < start else nodes:
                low, high, flags, key_size = head_of(pages, at + node)
                begin = at + node + _NODE.size
                middle = begin + key_size
                # sliced before it is checked, since a slice never reaches beyond; the check follows
                key, size = pages[begin:middle], low | high << 16
                stop = middle + (_NUMBER.size if flags else size)
                # keys must ascend: else a damaged branch could give records twice, unnoticed
                if key <= last or stop > end:
                    self._fail_at(last, "the next record is out of order or out of its page")
                if not flags:
                    value = pages[middle:stop]
                elif flags == _BIG:
                    value = value_of(key, number_at(pages, middle)[0], size)
                else:
                    self._fail_at(key, "it holds a table or several values; expected one, as Caffe's tools write")
                yield key, value
                last = key
            index += len(nodes)
        if index != self._count:
            self._fail(f"{index} records, its header promises {self._count}")

    def _read_header(self, size: int) -> None:
        found = []
        at = 0
        for number in range(2):
            page = self._bytes(at, _HEADER + _META.size, 0)
            if len(page) < _HEADER + _META.size:
                self._fail(f"data.mdb has {size} bytes, too few for its header")
            pgno, kind, _, _ = _PAGE.unpack_from(page)
            magic, version, *meta = _META.unpack_from(page, _HEADER)
            if magic != MAGIC or pgno != number or kind & _KINDS != _META_PAGE:
                self._fail(f"page {number} of data.mdb is no header")
            if version != VERSION:
                self._fail(f"its format has version {version}, expected {VERSION}")
            if not at:
                # the first page says where the second is: its free-table entry begins with the page size
                at = self._page_size = int.from_bytes(page[_HEADER + 24 : _HEADER + 28], "little")
                if at not in (1 << power for power in range(9, 16)):
                    self._fail(f"pages of {at} bytes")
            found.append(meta)
        # two headers by turns: the one of the newer transaction holds
        flags, self._depth, _, _, _, self._count, self._root, self._last, _ = max(found, key=lambda meta: meta[-1])
        promised = (self._last + 1) * self._page_size
        if size < promised:
            self._fail(f"data.mdb has {size} bytes, its header promises {promised}")
        if flags:
            self._fail(f"a table of another kind (flags {flags}); expected one as Caffe's tools write")
        if self._count and not 1 <= self._depth <= _DEEPEST:
            self._fail(f"{self._depth} levels of pages")

    def _leaves(self) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
        """The leaf pages in the order of their keys: bytes, where in them the page begins, where in it its nodes do."""
        find = _Pages(self).find
        size, count_of, left = self._page_size, _PAGE.unpack_from, self._last + 1
        # a stack of our own: how deep it goes is the file's word
        levels = [iter((self._root,))]
        while levels:
            # all leaves are equally deep in a B+ tree, so a page of the wrong kind is damage
            is_leaf = len(levels) == self._depth
            # the iterator stays in its level: behind a branch's children its next sibling comes
            for number in levels[-1]:
                left -= 1
                if left < 0:  # no page is there twice
                    self._fail("its branches form a circle")
                pages, at = find(number, 1)
                found, kind, lower, upper = count_of(pages, at)
                if found != number or kind & _KINDS != (_LEAF if is_leaf else _BRANCH):
                    self._fail(f"page {number} is no {'leaf' if is_leaf else 'branch'}")
                if not _HEADER < lower <= upper <= size or lower % 2:
                    self._fail(f"page {number} has {(lower - _HEADER) // 2} nodes")
                nodes = _pointers((lower - _HEADER) // 2)(pages, at + _HEADER)
                if min(nodes) < upper or max(nodes) > size - _NODE.size:
                    self._fail(f"page {number} has a node outside of it")
                if not is_leaf:
                    parts = [_NODE.unpack_from(pages, at + node) for node in nodes]
                    levels.append(iter([low | high << 16 | highest << 32 for low, high, highest, _ in parts]))
                    break
                yield pages, at, nodes
            else:
                levels.pop()

    def _bytes(self, at: int, size: int, least: int) -> bytes:
        """Up to `size` bytes of the file from `at` on, at least `least` of them."""
        data = b""
        try:
            # pread, because several threads read, and a file has one position
            data = os.pread(self._file, size, at)
            while len(data) < least and (more := os.pread(self._file, least - len(data), at + len(data))):
                data += more
        except OSError as error:
            raise ForceregError(f"{self.path}: data.mdb cannot be read ({error.strerror}); check the disk") from error
        if len(data) < least:
            self._fail(f"data.mdb was cut to {at + len(data)} bytes while it was read")
        return data

    def _fail(self, found: str) -> NoReturn:
        raise ForceregError(f"{self.path}: not a readable LMDB ({found}); copy or write it again")

    def _fail_at(self, key: bytes, found: str) -> NoReturn:
        self._fail(f"at record '{key.decode('utf-8', 'backslashreplace')}': {found}")


@cache
def _pointers(count: int) -> Callable[[bytes, int], tuple[int, ...]]:
    return Struct(f"<{count}H").unpack_from


class _Pages:
    """Pages of the file; where they are asked for one behind the other, more and more are read ahead."""

    def __init__(self, records: LmdbRecords) -> None:
        self._records, self._size = records, records._page_size
        self._first = self._behind = 0
        self._ahead = 1
        self._window = b""

    def find(self, number: int, count: int) -> tuple[bytes, int]:
        """Bytes in which pages `number` to `number` + `count` - 1 are, and where the first begins."""
        if self._first <= number and number + count <= self._behind:
            return self._window, (number - self._first) * self._size
        records, size = self._records, self._size
        # pages 0 and 1 are the headers
        if not 2 <= number <= records._last:
            records._fail(f"page {number} of {records._last + 1} is named")
        # what is between belongs to the other kind of page
        follows = self._first <= number <= self._behind + 4
        # doubled while reading goes on, one page after a jump
        self._ahead = min(2 * self._ahead, _AHEAD) if follows else 1
        most = max(count, min(self._ahead, records._last + 1 - number))
        self._window = records._bytes(number * size, most * size, count * size)
        self._first, self._behind = number, number + len(self._window) // size
        return self._window, 0

    def value(self, key: bytes, number: int, size: int) -> bytes:
        """The value of record `key`, of `size` bytes in pages of its own, from page `number` on."""
        records = self._records
        count = (_HEADER + size - 1) // self._size + 1
        if self._first <= number and number + count <= self._behind:
            pages, at = self._window, (number - self._first) * self._size
        else:
            if not 2 <= number <= records._last + 1 - count:
                records._fail_at(key, f"its value has {size} bytes from page {number} on, of {records._last + 1}")
            # before the memory is taken: the size is the file's word too
            if size > DECODING.limit:
                DECODING.refuse(size, str(record_error(str(records.path), key, "its value")), "write it smaller")
            pages, at = self.find(number, 1 if count > _LARGE else count)
        found, kind, low, high = _PAGE.unpack_from(pages, at)
        if found != number or kind & _KINDS != _OVERFLOW or low | high << 16 < count:
            records._fail_at(key, f"page {number} is not the first of its value")
        if count > _LARGE:
            return records._bytes(number * self._size + _HEADER, size, size)
        return pages[at + _HEADER : at + _HEADER + size]
