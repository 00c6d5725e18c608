"""The two files that commands make of a snapshot: a net, and its weights with that net inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcereg.errors import UsageError, printable

if TYPE_CHECKING:
    from forcereg.lowrank.rewrite import Weights
    from forcereg.snapshot import ModelFile

MODEL_END = ".caffemodel.h5"  # what is written is HDF5, whatever was read


def default_prefix(snapshot: str, ending: str = "lowrank") -> Path:
    """`<snapshot stem>_<ending>` beside the snapshot."""
    path = Path(snapshot)
    return path.with_name(f"{stem(path)}_{ending}")


def stem(snapshot: Path) -> str:
    """A snapshot's name without its endings."""
    return snapshot.name.removesuffix(".h5").removesuffix(".caffemodel").removesuffix(".solverstate")


def write_net(
    prefix: Path,
    net: Any,
    weights: Weights,
    source: ModelFile,
    model: str | None,
    heading: str,
    attrs: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Writes a net made of `source`, and its weights with the net inside and all that was known of it; their paths.

    `model`: the net file that was read, if one was; no file that was read is overwritten. `heading`: what was done,
    for a comment. `attrs` are kept in the weights file too. Raises ForceregError.
    """
    from forcereg.files import write_text
    from forcereg.schema.text import to_text
    from forcereg.snapshot import write_model

    net_path, model_path = Path(f"{prefix}.prototxt"), Path(f"{prefix}{MODEL_END}")
    for path, read in ((model_path, source.path), (net_path, model)):
        if read is not None and path.resolve() == Path(read).resolve():
            raise UsageError(f"--out {prefix} would overwrite {read}; choose another prefix")
    text = f"# {printable(f'{source.path.name}: {heading}')}\n" + to_text(net)
    write_model(model_path, weights, attrs={**source.attrs, **(attrs or {}), "forcereg_net": text})
    write_text(net_path, text)
    return {"model": str(net_path), "weights": str(model_path)}
