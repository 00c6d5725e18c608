"""Net and solver files, text or binary, to messages in today's form and back."""

from __future__ import annotations

import os
import re
import struct
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from forcereg.errors import ForceregError, did_you_mean
from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.diagnose import explain
from forcereg.schema.dialects import translated
from forcereg.schema.encoding import check_kind, check_width, decode_text
from forcereg.schema.fields import read_fields
from forcereg.schema.foreign import OWN, parsed, put_back
from forcereg.schema.numbers import repeats
from forcereg.schema.scan import Scan, position, scan, shown
from forcereg.schema.survey import Tell, mended
from forcereg.schema.types import BUILT_IN
from forcereg.schema.upgrade import upgrade_net, upgrade_solver
from forcereg.system.files import open_file, read_file

M = TypeVar("M")

# control characters: in no prototxt, but in every binary net (the tag of `layer` has a 6, `layers` is 18)
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
MOST_TEXT, MOST_BINARY = 64 << 20, (2 << 30) - 1
"""Bytes of a file: of text more than any net has, and what protobuf can hold."""
_HEAD = 1 << 16
_OWN_LINE = re.compile(rf"^( *){OWN}: .*\n", re.MULTILINE)
# layer type of the fork, its field here, the field that has the fork's number here
_FORK_FIELDS = (
    ("Sparsify", "sparsify_param", "swish_param"),
    ("SymmetricRectify", "symmetric_rectify_param", "clip_param"),
)


@dataclass(frozen=True)
class NetFile:
    """A net in `layer` form, and where it came from."""

    message: Any
    """The NetParameter, upgraded."""
    name: str
    """The path as given, or "<text>"."""
    text: str
    """The text as given; for binary nets the upgraded net's text, without weights."""
    lines: tuple[int | None, ...]
    """Line of `message.layer[i]` in the text, from 1; None where it has none (binary, made by an upgrade)."""
    warnings: tuple[str, ...] = ()
    """What the file has and the message hasn't, one line each."""
    broken: frozenset[int] = frozenset()
    """Lines of layers that lack what couldn't be read, which was told."""

    def where(self, i: int) -> str:
        """'net.prototxt:41: layer 'conv1'', the beginning of every error about layer `i`."""
        line = f":{self.lines[i]}" if self.lines[i] else ""
        return f"{self.name}{line}: layer '{shown(self.message.layer[i].name, 80)}'"


@dataclass(frozen=True)
class SolverFile:
    """A solver, its inline nets upgraded too, and where it came from (as in NetFile)."""

    message: Any
    name: str
    text: str
    root: Path | None = None
    """Where its relative paths start; None: where the nets that it names are found (forcereg.system.paths)."""
    inline: NetFile | None = None
    """Where its net_param came from, if that was a file, for errors; else the solver itself."""


def parse_text(text: str, kind: Callable[[], M], name: str = "<text>") -> M:
    """`text` as a message of class `kind`, nothing upgraded. Raises ForceregError 'file:line:column: ...'."""
    return _parse(text, kind, name)[0]


def parse_net(text: str, name: str = "<text>", tell: Tell | None = None) -> NetFile:
    """A net from prototxt. Raises ForceregError 'file:line:column: ...' for text that is none.

    `tell`: is called with each such problem instead, and the net is what is left: see `NetFile.broken`.
    """
    left, broken = (text, frozenset[int]()) if tell is None else mended(text, NetParameter, name, tell)
    message, scanned = _parse(left, NetParameter, name)
    if message.layer and message.layers:
        raise ForceregError(_mixed(f"{name}:{scanned.first['layers']}: ", scanned.first["layer"]))
    file = _net_file(message, name, text, scanned.layer_lines, scanned.first.get("input"))
    return replace(file, broken=broken) if broken else file


def parse_solver(text: str, name: str = "<text>", tell: Tell | None = None) -> SolverFile:
    """A solver from prototxt. Raises ForceregError, or tells what is wrong, as `parse_net`."""
    left = text if tell is None else mended(text, SolverParameter, name, tell)[0]
    message = parse_text(left, SolverParameter, name)
    _check_forms(message, left, name)
    lost: list[str] = []
    upgraded = upgrade_solver(message, name, lost)
    for line in lost:
        warnings.warn(line, stacklevel=2)
    return SolverFile(upgraded, name, text)


def _check_forms(solver: Any, text: str, name: str) -> None:
    """Raises ForceregError for a net inside a solver that mixes the new and the old format."""
    # cheap, where the fields of a large text are not
    if not any(net.layer and net.layers for _, net in inline_nets(solver)):
        return
    for one in read_fields(text)[0]:
        for block in one.blocks if one.name.endswith("net_param") else ():
            first = {part.name: part for part in reversed(block.fields)}
            if "layer" in first and "layers" in first:
                other = text.count("\n", 0, first["layer"].at) + 1
                raise ForceregError(_mixed(f"{name}:{position(text, first['layers'].at)}: {one.name}: ", other))


def inline_nets(solver: Any) -> Iterator[tuple[str, Any]]:
    """The nets inside a SolverParameter, with their fields' names."""
    for field, value in solver.ListFields():
        if field.message_type is NetParameter.DESCRIPTOR:
            yield from ((field.name, net) for net in (value if repeats(field) else (value,)))


def _mixed(where: str, other: int) -> str:
    return (
        f"{where}`layer` (line {other}) and `layers` in one net; `layers` is the old format, "
        "make all of them `layer { ... }`"
    )


def net_from_message(message: Any, name: str = "<message>") -> NetFile:
    """The same for a NetParameter: of a program, or inline in a solver. The argument stays as it is."""
    return _net_file(message, name, None, ())


def read_net(path: str | Path, tell: Tell | None = None, dialect: str | None = None) -> NetFile:
    """A net file, prototxt or binary (which it is, its content tells). Raises ForceregError; `tell` as in parse_net.

    `dialect`: the fork that wrote a binary one, see decode_net.
    """
    data, name = _read(path), str(path)
    # ahead of everything: a web page or a zip is no damaged net
    check_kind(data, name, "a net: prototxt or a binary NetParameter")
    if _BINARY.search(data):
        return _net_file(decode_net(data, name, dialect), name, None, ())
    return parse_net(decode_text(data, name), name, tell)


def is_text(path: str | Path) -> bool:
    """Whether a file is a prototxt rather than a snapshot, by its beginning. Raises ForceregError as `read_net`."""
    return not _BINARY.search(_read(path, _HEAD))


def read_solver(path: str | Path, tell: Tell | None = None) -> SolverFile:
    """A solver file (prototxt). Raises ForceregError; `tell` as in parse_net."""
    data, name = _read(path), str(path)
    check_kind(data, name, "a solver, which is plain text")
    if match := _BINARY.search(data):
        check_width(data, name)
        found = f"byte {match.start()} is 0x{match[0].hex()}"
        raise ForceregError(f"{name}: {found}; a solver file is plain text")
    return parse_solver(decode_text(data, name), name, tell)


def to_text(message: Any) -> str:
    """`message` as prototxt, layers' own fields among the others; parsing it gives an equal message."""
    text = text_format.MessageToString(message, as_utf8=True)
    own = list(_own_texts(message)) if OWN in text else []
    if not own:
        return text
    # protobuf has written them as one string: the lines take its place
    return _OWN_LINE.sub(lambda line: textwrap.indent(own.pop(0), line[1]), text)


def _own_texts(message: Any) -> Iterator[str]:
    """The own fields of the layers in a message, in the order in which it is written."""
    for field, value in message.ListFields():
        if field.name == OWN:
            yield value
        elif field.message_type is not None and field.name != "blobs":
            for one in value if repeats(field) else (value,):
                yield from _own_texts(one)


def _parse(text: str, kind: Callable[[], M], name: str) -> tuple[M, Scan]:
    scanned = scan(text, name)
    message, wrong, foreign = parsed(text, kind)
    if wrong is not None:
        raise ForceregError(explain(wrong, foreign, name, cast(Any, message).DESCRIPTOR, scanned.unclosed))
    # our own name for what isn't Caffe's: nobody else may fill it
    if OWN in text and any(_own_texts(message)):
        raise ForceregError(f"{name}:{position(text, text.index(OWN))}: '{OWN}' is no field of LayerParameter")
    put_back(message, foreign.own)
    if foreign.skipped:
        told = "; ".join(f"{', '.join(names)} ({fork})" for fork, names in foreign.skipped.items())
        warnings.warn(f"{name}: fields of forks that change no results here are skipped: {told}", stacklevel=1)
    return message, scanned


def _net_file(
    message: Any, name: str, text: str | None, source_lines: tuple[int, ...], input_line: int | None = None
) -> NetFile:
    net, lines, told = upgrade_net(message, name, source_lines, input_line)
    return NetFile(net, name, _text_without_weights(net) if text is None else text, lines, told)


def _text_without_weights(net: Any) -> str:
    slim = NetParameter()
    slim.CopyFrom(net)
    for layer in slim.layer:
        layer.ClearField("blobs")
    return to_text(slim)


def _read(path: str | Path, begin: int | None = None) -> bytes:
    """The content of a file, or its first `begin` bytes."""
    path = Path(path)
    try:
        with open_file(path) as file:
            # its beginning says which limit holds, before more is read
            head = file.read(_HEAD)
            if begin is not None:
                return head[:begin]
            size = os.fstat(file.fileno()).st_size
        most = MOST_BINARY if _BINARY.search(head) else MOST_TEXT
        if size > most:
            kind = "a binary net has" if most == MOST_BINARY else "a prototxt has"
            raise ForceregError(f"{path}: it has {size:,} bytes; {kind} at most {most:,}")
        return read_file(path, most)
    except FileNotFoundError:
        raise ForceregError(f"{path}: no such file{did_you_mean(path.name, _siblings(path))}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ForceregError(f"{str(path)!r}: cannot be read: {reason}") from None


def _siblings(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)
    except OSError:
        return []


def decode_net(data: bytes, name: str, dialect: str | None = None) -> Any:
    """A binary NetParameter, nothing upgraded. Raises ForceregError, opened by `name`.

    `dialect`: the fork that wrote it, of forcereg.schema.dialects; needed where its numbers are other fields elsewhere.
    """
    net, data = NetParameter(), translated(data, name, dialect)
    try:
        net.ParseFromString(data)
    # DecodeError is what the C runtime raises; the pure Python one lets others through
    except (DecodeError, RecursionError, ValueError, IndexError, struct.error):
        # a part may have been read before the damage
        net.Clear()
    if not net.layer and not net.layers:
        check_width(data, name)
        match = _BINARY.search(data)
        at = f" (byte {match.start()} is 0x{match[0].hex()})" if match else ""
        raise ForceregError(f"{name}: neither prototxt{at} nor a binary net; the file may be damaged")
    _check_strings(net, name)
    _move_fork_fields(net)
    _check_own(net, name)
    return net


def _check_own(net: Any, name: str) -> None:
    """Raises ForceregError for own fields that are no prototxt; warns of those in another schema's numbers."""
    unnamed = []
    for layer in net.layer:
        if read_fields(layer.own_fields)[1] is not None:
            raise ForceregError(
                f"{name}: layer '{shown(layer.name, 80)}': own_fields is no prototxt; it may be damaged"
            )
        unnamed += [f"'{shown(layer.name)}'"] * (layer.type not in BUILT_IN and len(UnknownFieldSet(layer)) > 0)
    if unnamed:
        some = ", ".join(unnamed[:3]) + (", ..." if len(unnamed) > 3 else "")
        warnings.warn(
            f"{name}: parameters of the own types of {some} are not read: a binary net holds no names of them; "
            "give the prototxt where they matter",
            stacklevel=1,
        )


def _check_strings(message: Any, name: str) -> None:
    """Raises ForceregError for a string that isn't UTF-8: the C runtime gives it as bytes."""
    for field, value in message.ListFields():
        if field.name == "blobs":
            continue
        values = value if hasattr(value, "extend") else [value]
        if field.message_type is not None:
            for one in values:
                _check_strings(one, name)
        elif any(isinstance(one, bytes) for one in values):
            where = f"{message.DESCRIPTOR.name}, field '{field.name}'"
            raise ForceregError(f"{name}: {where}: a string that is not UTF-8; the file may be damaged")


def _move_fork_fields(net: Any) -> None:
    """In a binary layer of one of the fork's types the numbers 147 and 148 are the fork's fields."""
    for layer in net.layer:
        for kind, ours, theirs in _FORK_FIELDS:
            # decoded by BVLC's numbers; its bytes are the fork's message all the same
            if layer.type == kind and layer.HasField(theirs):
                getattr(layer, ours).ParseFromString(getattr(layer, theirs).SerializeToString())
                layer.ClearField(theirs)
