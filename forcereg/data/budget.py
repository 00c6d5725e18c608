"""The memory that all threads together may use for what they decode."""

from __future__ import annotations

import threading
from collections import deque
from typing import NoReturn

from forcereg.errors import ForceregError, UsageError
from forcereg.system.arguments import checked

MIB = 1 << 20
OPTION = "--decode-budget"


class Budget:
    """`limit` bytes, of which threads hold some for a while; who asks first is served first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def refuse(self, size: int, what: str, fix: str) -> NoReturn:
        """Raises the ForceregError about `what`, whose `size` bytes are more than the limit."""
        raise ForceregError(
            f"{what} takes {size / MIB:,.0f} MiB of memory, and all that is decoded at a time may take "
            f"{self.limit / MIB:,.0f} MiB; {fix} or raise {OPTION}"
        )

    def take(self, size: int) -> None:
        """Waits until `size` bytes, which fit the limit, are free, and holds them until they are given back.

        No thread may ask for more while it holds some.
        """
        with self._changed:
            # behind who waits even if there is room for this one: small images would keep a large one waiting for ever
            if self._waiting or not self._has_room(size):
                place = object()
                self._waiting.append(place)
                self._changed.wait_for(lambda: self._waiting[0] is place and self._has_room(size))
                self._waiting.popleft()
                # what is free now may be enough for the next in line, too
                self._changed.notify_all()
            self.used += size

    def give(self, size: int) -> None:
        """Gives `size` bytes back."""
        with self._changed:
            self.used -= size
            if self._waiting:
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        # alone it gets through whatever it takes: the limit may have been lowered since it was found to fit
        return self.used + size <= self.limit or not self.used


DECODING = Budget(1 << 30)
"""For images, and for what converters read."""


@checked
def decode_budget(mib: int) -> None:
    """Memory, in MiB, that decoding may take in this process, all images together; a larger image is refused.

    Holds from now on, for nets and converters alike; 1,024 at first. Raises UsageError for less than 1.

    >>> forcereg.decode_budget(2048)
    """
    if mib < 1:
        raise UsageError(f"decoding may take {mib} MiB; expected 1 or more")
    DECODING.limit = mib * MIB
