"""The two files that commands make of a snapshot: a net, and its weights with that net inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.errors import ForceregError, UsageError, printable

if TYPE_CHECKING:
    from forcereg.lowrank.rewrite import Weights
    from forcereg.snapshot import ModelFile

FORMATS = {"binary": ".caffemodel", "hdf5": ".caffemodel.h5"}
"""What --format may say -> how such a model's name ends."""


def default_prefix(snapshot: str, ending: str = "lowrank") -> Path:
    """`<snapshot stem>_<ending>` beside the snapshot."""
    path = Path(snapshot)
    return path.with_name(f"{stem(path)}_{ending}")


def stem(snapshot: Path) -> str:
    """A snapshot's name without its endings."""
    return snapshot.name.removesuffix(".h5").removesuffix(".caffemodel").removesuffix(".solverstate")


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--format, for `write_net`."""
    return click.option(
        "--format", "form", type=click.Choice(list(FORMATS)),
        help="Of the weights written.  [default: the snapshot's]",
    )(function)  # fmt: skip


def write_net(
    prefix: Path,
    net: Any,
    weights: Weights,
    source: ModelFile,
    model: str | None,
    heading: str,
    attrs: Mapping[str, str] | None = None,
    form: str | None = None,
) -> dict[str, str]:
    """Writes a net made of `source`, and its weights with the net inside and all that was known of it; their paths.

    `model`: the net file that was read, if one was; no file that was read is overwritten. `heading`: what was done,
    for a comment. `attrs` are kept in the weights file too. `form`: of `FORMATS`, None for that of `source`. Warns of
    weights in the other format that an earlier run left there. Raises ForceregError.
    """
    from forcereg.net.convert import MESSAGE, training_message, write_in_format
    from forcereg.schema.text import parse_net, to_text
    from forcereg.snapshot import is_binary
    from forcereg.system.files import write_text

    form = form or ("binary" if is_binary(source.path) else "hdf5")
    net_path = Path(f"{prefix}.prototxt")
    paths = {one: Path(f"{prefix}{ending}") for one, ending in FORMATS.items()}
    for path, read in ((net_path, model), *((path, source.path) for path in paths.values())):
        if read is not None and path.resolve() == Path(read).resolve():
            if path not in (net_path, paths[form]):
                raise UsageError(f"--out {prefix} would put another net beside {read}; choose another prefix")
            raise UsageError(f"--out {prefix} would overwrite {read}; choose another prefix")
    text = f"# {printable(f'{source.path.name}: {heading}')}\n" + to_text(net)
    kept = {name: value for name, value in source.attrs.items() if name != MESSAGE}  # that is of the old net's layers
    made = replace(source, layers=weights, diffs={}, attrs={**kept, **(attrs or {}), "forcereg_net": text})
    file = parse_net(text, str(net_path))
    if form == "binary":
        check_size(paths[form], weights)
    written = write_in_format(paths[form], made, training_message(file), form == "binary", file)
    write_text(net_path, text)
    for other in paths.values():
        if other != paths[form]:
            warn_of(other, paths[form], text, written)
    return {"model": str(net_path), "weights": str(paths[form])}


def check_size(path: Path, weights: Weights) -> None:
    """Raises ForceregError for more than a binary file holds."""
    from forcereg.snapshot.binary import LIMIT

    size = sum(4 * values.size for blobs in weights.values() for values in blobs.values())
    if size > LIMIT:
        raise ForceregError(
            f"{path}: the weights take {size:,} bytes, a binary file holds {LIMIT:,} at most; give --format hdf5"
        )


def warn_of(other: Path, written: Path, text: str, weights: Weights) -> None:
    """Warns of a model in the other format beside the one written, unless it holds the same."""
    from forcereg.snapshot import NET, fingerprint, read_model

    if not other.is_file():
        return
    try:
        known = read_model(other)
        same = known.attrs.get(NET) == text and fingerprint(known.layers) == fingerprint(weights)
    except ForceregError:
        same = False
    if not same:
        warnings.warn(f"{other} is an earlier run's: the net beside it is now that of {written}", stacklevel=3)
