"""The two files of a net made of a snapshot: the net, and its weights with that net inside."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError, UsageError, printable
from forcereg.lowrank.rewrite import Weights
from forcereg.net.convert import MESSAGE, training_message, write_in_format
from forcereg.net.held import in_binary
from forcereg.net.read import ReadNet
from forcereg.schema.text import parse_net, to_text
from forcereg.snapshot import NET, binary, fingerprint, read_model
from forcereg.system.arguments import checked
from forcereg.system.files import write_text
from forcereg.system.paths import StrPath

FORMATS = {"binary": ".caffemodel", "hdf5": ".caffemodel.h5"}
"""Formats of weights -> how such a file's name ends."""


def default_prefix(snapshot: StrPath, ending: str = "lowrank") -> Path:
    """`<snapshot stem>_<ending>` beside the snapshot."""
    path = Path(snapshot)
    return path.with_name(f"{stem(path)}_{ending}")


def stem(snapshot: Path) -> str:
    """A snapshot's name without its endings."""
    name = snapshot.name
    for ending in (".h5", ".caffemodel", ".solverstate", ".safetensors", ".npz"):
        name = name.removesuffix(ending)
    return name


@dataclass(frozen=True)
class RegroupedNet:
    """A net whose grouped convolutions were split into parallel layers, or merged; it computes what it did.

    net: NetParameter. weights: layer name -> position of the blob in its layer -> values. layers: names of those that
    were split, or made. heading: what was done, in words.

    >>> made = forcereg.split_groups("grouped.caffemodel.h5", model="grouped.prototxt")
    >>> made.layers, made.heading
    (('conv2',), 'groups of conv2 as parallel layers')
    """

    net: Any = field(repr=False)
    weights: Weights = field(repr=False)
    layers: tuple[str, ...]
    read: ReadNet = field(repr=False)
    heading: str
    warn: Callable[[str], None] = field(default=warnings.warn, repr=False)

    @checked
    def write(self, prefix: StrPath, format: str | None = None) -> dict[str, str]:
        """Writes PREFIX.prototxt and the weights, PREFIX.caffemodel or PREFIX.caffemodel.h5; the paths of both.

        format: "binary" or "hdf5", None for the snapshot's; a net in memory is written as HDF5. Raises UsageError where
        a file that was read would be overwritten, ForceregError if the system refuses.
        """
        return write_net(prefix, self.net, self.weights, self.read, self.heading, form=format, warn=self.warn)


def write_net(
    prefix: StrPath,
    net: Any,
    weights: Weights,
    read: ReadNet,
    heading: str,
    attrs: Mapping[str, str] | None = None,
    form: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, str]:
    """Writes a net made of one that was `read`, and its weights with the net inside and all that was known of it.

    No file that was read is overwritten; the paths of both are returned. `heading`: what was done, for a comment.
    `attrs` are kept in the weights file too. `form`: of `FORMATS`, None for that of the snapshot. Warns of weights in
    the other format that an earlier run left there. Raises ForceregError.
    """
    prefix, source = os.fspath(prefix), read.model
    if form is not None and form not in FORMATS:
        raise UsageError(f"the format is '{form}'; expected {' or '.join(FORMATS)}")
    form = form or ("binary" if in_binary(source.path) else "hdf5")
    net_path = Path(f"{prefix}.prototxt")
    paths = {one: Path(f"{prefix}{ending}") for one, ending in FORMATS.items()}
    for path, known in ((net_path, read.given), *((path, source.path) for path in paths.values())):
        # as files, not as names: links and .. lead to the same
        if known is not None and path.resolve() == Path(known).resolve():
            # of the other format nothing is written, but the net beside it would be another
            if path not in (net_path, paths[form]):
                raise UsageError(f"--out {prefix} would put another net beside {known}; choose another prefix")
            raise UsageError(f"--out {prefix} would overwrite {known}; choose another prefix")
    text = f"# {printable(f'{source.path.name}: {heading}')}\n" + to_text(net)
    kept = {name: value for name, value in source.attrs.items() if name != MESSAGE}  # that is of the old net's layers
    # diffs are gradients of the weights that were
    made = replace(source, layers=weights, diffs={}, attrs={**kept, **(attrs or {}), "forcereg_net": text})
    file = parse_net(text, str(net_path))
    if form == "binary":
        check_size(paths[form], weights)
    # weights first: cut short here, no net is left beside an older run's weights as if they were its own
    written = write_in_format(paths[form], made, training_message(file), form, file)
    write_text(net_path, text)
    for other in paths.values():
        if other != paths[form]:
            warn_of(other, paths[form], text, written, warn)
    return {"model": str(net_path), "weights": str(paths[form])}


def check_size(path: Path, weights: Weights) -> None:
    """Raises ForceregError for more than a binary file holds."""
    size = sum(4 * values.size for blobs in weights.values() for values in blobs.values())
    if size > binary.LIMIT:
        raise ForceregError(
            f"{path}: the weights take {size:,} bytes, a binary file holds {binary.LIMIT:,} at most; give --format hdf5"
        )


def warn_of(other: Path, written: Path, text: str, weights: Weights, warn: Callable[[str], None]) -> None:
    """Warns of a model in the other format beside the one written, unless it holds the same."""
    if not other.is_file():
        return
    try:
        known = read_model(other)
        # the same run in both formats, one after the other, is no mistake
        same = known.attrs.get(NET) == text and fingerprint(known.layers) == fingerprint(weights)
    except ForceregError:
        same = False
    if not same:
        warn(f"{other} is an earlier run's: the net beside it is now that of {written}")
