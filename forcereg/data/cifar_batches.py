"""CIFAR-10's batches: the binary ones, and the pickled ones without running what a pickle may run."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from forcereg.errors import ForceregError

SHAPE = (3, 32, 32)
PIXELS = 3072
CLASSES = 10

# what numbers, texts, lists, dicts and arrays are written with, by any protocol
_PLAIN = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905
)
_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_STEPS = 1_000_000
"""Most instructions in a pickle; a batch of 10,000 images has some 50,000, and one may take 64 bytes."""

Labelled = tuple[np.ndarray, np.ndarray]


def read_binary(name: str, data: bytes) -> Labelled:
    """Images (N, 3, 32, 32) and labels (N,), uint8, of records of a label and 3x32x32 pixels. Raises ForceregError."""
    size = 1 + PIXELS
    if not data or len(data) % size:
        raise ForceregError(
            f"{name} has {len(data)} bytes, expected a multiple of {size} (label, then 3x32x32); get it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return _checked(name, records[:, 1:].reshape(-1, *SHAPE), records[:, 0])


def read_pickled(name: str, data: bytes) -> Labelled:
    """The same of a pickled batch: a dict of data, (N, 3072) uint8, and N labels. Raises ForceregError."""
    try:
        batch = _load(data)
        if not isinstance(batch, dict):
            raise ValueError(f"it holds a {type(batch).__name__}")
        found = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        array, labels = found["data"], found["labels"]
        if not isinstance(array, _Array):
            raise ValueError("its data is no array")
        images = array.values()
        # by type: True is an int, too
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise ValueError("labels aren't a list of numbers")
        if not len(images) or len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
    except Exception as error:  # damaged, it raises anything
        said = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ForceregError(
            f"{name}: not a batch of the Python version of CIFAR-10 ({said}); get it again, or the binary version "
            "(cifar-10-binary.tar.gz)"
        ) from error
    return _checked(name, images, np.array(labels, np.uint8))


def _checked(name: str, images: np.ndarray, labels: np.ndarray) -> Labelled:
    if labels.max() >= CLASSES:
        raise ForceregError(f"{name}: label {labels.max()} found, expected 0 to 9; not CIFAR-10")
    return images, labels


def _load(data: bytes) -> Any:
    """What is pickled in `data`. It can't run anything, or take much more memory than its length."""
    # all of it is looked at before anything is loaded, because loading runs what stands in front of a bad step
    for step, (op, arg, _) in enumerate(pickletools.genops(data)):
        if op.name not in _PLAIN:
            raise pickle.UnpicklingError(f"it holds {op.name}, which no such batch does")
        if step > _STEPS:
            raise pickle.UnpicklingError(f"it has more than {_STEPS:,} steps")
        if op.name in _PUTS and int(arg or 0) > _STEPS:  # a table of that many entries would be made
            raise pickle.UnpicklingError(f"it holds an entry numbered {arg}")
    # Python 2 wrote the batches: its texts are bytes, which by default would be decoded as ASCII
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    """Gives stand-ins for the functions that arrays are made with, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module][name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such batch does") from None


class _Array:
    """An array as pickled: its state is kept, and looked at by `values`."""

    def __init__(self, shape: Any = None, kind: Any = None, data: Any = None) -> None:
        self.shape, self.kind, self.data = shape, kind, data

    def __setstate__(self, state: Any) -> None:
        # five values or an error, which is told as damage by who reads
        _, self.shape, self.kind, fortran, self.data = state
        if fortran:
            raise pickle.UnpicklingError("its array isn't in C's order")

    def values(self) -> np.ndarray:
        """(N, 3, 32, 32) uint8. Raises ValueError for any other array."""
        if not isinstance(self.kind, _Kind) or self.kind.name not in ("u1", b"u1", "uint8"):
            raise ValueError("its data isn't of bytes")
        if not isinstance(self.data, (bytes, bytearray)) or self.shape != (len(self.data) // PIXELS, PIXELS):
            raise ValueError(f"its data is {self.shape}, expected rows of {PIXELS}")
        return np.frombuffer(self.data, np.uint8).reshape(-1, *SHAPE)


class _Kind:
    """A data type as pickled."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like, which bytes don't have


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, kind if order == "C" else None, data)


def _latin(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
        raise pickle.UnpicklingError("it encodes text")
    return text.encode("latin-1")


class _Function:
    """What a pickle may call, but not change."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


_MADE = {"_reconstruct": _Function(lambda *_: _Array()), "_frombuffer": _Function(_from_buffer)}
_KNOWN: dict[str, dict[str, Any]] = {
    "numpy": {"ndarray": _Array, "dtype": _Kind},
    # numpy 2 renamed core to _core and reads either name; so do we, whichever wrote the batch
    **{f"numpy.{core}.{module}": _MADE for core in ("core", "_core") for module in ("multiarray", "numeric")},
    "_codecs": {"encode": _Function(_latin)},
}
