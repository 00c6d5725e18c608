"""Models and solver states from one format to another, whole: B's name says which, A's content what it is.

A binary model holds its layers' settings and every blob that a layer uses; one in HDF5 holds neither, but a blob under
its owner only, and the text of the net as an attribute. So what is missing comes from that text, or from a net given;
what HDF5 has no place for goes into an attribute of its own, for the way back. Files of named arrays are as HDF5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.errors import ForceregError, UsageError
from forcereg.net.held import in_binary
from forcereg.net.load import meta_net
from forcereg.schema import TEST, TRAIN, NetParameter, ParamSpec
from forcereg.schema.rules import net_state
from forcereg.schema.spec import build_spec
from forcereg.schema.text import NetFile, decode_net, net_from_message, parse_net, parse_text, to_text
from forcereg.snapshot import container
from forcereg.snapshot.binary import read_net
from forcereg.snapshot.content import NET, Blobs, ModelFile, StateFile, float_bytes
from forcereg.snapshot.load import modern
from forcereg.snapshot.message import net_message
from forcereg.snapshot.read import read
from forcereg.snapshot.write import ARRAYS, write_arrays, write_model, write_state

MESSAGE = "forcereg_message"
"""The attribute of an HDF5 model for the layers of the binary one that it was, where the net's text tells others."""
ENDINGS = {
    ".caffemodel.h5": "hdf5",
    ".solverstate.h5": "hdf5",
    ".h5": "hdf5",
    ".caffemodel": "binary",
    ".solverstate": "binary",
    ".safetensors": "safetensors",
    ".npz": "npz",
}
"""How a name may end -> the format of such a file."""
_PERMISSIVE = ParamSpec.DimCheckMode.Value("PERMISSIVE")


@dataclass(frozen=True)
class Converted:
    """What was written: "model" or "solver state", its format, numbers of blobs and values, and what is to be said."""

    kind: str
    format: str
    blobs: int
    values: int
    remarks: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Such as "a model in HDF5, 8 blobs of 431,080 values"."""
        form = "HDF5" if self.format == "hdf5" else self.format
        return f"a {self.kind} in {form}, {self.blobs:,} blobs of {self.values:,} values"


def convert(
    source: str | Path, target: str | Path, model: NetFile | None = None, dialect: str | None = None
) -> Converted:
    """Writes the model or solver state `source` as `target`, in the format that its name tells.

    `model`: the net of a model without one, whose layers a binary file is to hold. `dialect`: the fork whose numbers
    the layers in a binary model have. Old formats (V0, V1, four axes, other types of numbers) become today's. Raises
    UsageError for a name of neither kind, for the same file and for a model's name for a state; ForceregError for what
    can't be read, or not be written without a loss.
    """
    path = Path(target)
    ending = next((one for one in ENDINGS if path.name.endswith(one)), None)
    if ending is None:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(ENDINGS)}")
    _check_other(Path(source), path)
    found = read(source)
    kind = "model" if isinstance(found, ModelFile) else "solver state"
    others = (".solverstate",) if kind == "model" else (".caffemodel", ".safetensors", ".npz")
    if ending.startswith(others):
        raise UsageError(f"{path}: {source} is a {kind}; give a name that ends as one")
    if isinstance(found, ModelFile):
        return convert_model(found, path, model, dialect)
    if model is not None or dialect is not None:
        given = "--dialect" if model is None else "--model"
        raise UsageError(f"{source}: a solver state has no net; leave out {given}")
    return _state(found, path, ENDINGS[ending] == "binary")


# -- models


def convert_model(model: ModelFile, path: Path, file: NetFile | None = None, dialect: str | None = None) -> Converted:
    """Writes a model that was read, or is in memory, as `convert`; `path` ends as one of ENDINGS. Raises as that."""
    _check_other(model.path, path)
    form = next(ENDINGS[one] for one in ENDINGS if path.name.endswith(one))
    binary, remarks = form == "binary", list[str]()
    net, attrs = None, dict(model.attrs)
    message = attrs.pop(MESSAGE, None)
    if in_binary(model.path):
        stored, old = stored_net(model.path, dialect) if model.layers else (NetParameter(), "")
        remarks += [old] if old else []
        # layers without a type are names for weights, not a net
        net = stored if any(layer.type for layer in stored.layer) else None
    elif message is not None:
        net = parse_text(message, NetParameter, f"{model.path}: {MESSAGE}")
    known = file or _own_net(model)
    made = None if known is None else training_message(known)
    net = net or made
    # named arrays tell nothing of layers without blobs, which HDF5 has, too
    model = replace(model, layers={**{layer.name: {} for layer in (net.layer if net else ())}, **model.layers})
    if model.legacy:
        remarks.append("blobs of four axes have as many as their layers take now")
        model = modern(model, {layer.name: layer.type for layer in (net.layer if net else ())})
    if binary and net is None:
        remarks.append("it holds no net, so that the new file tells names and weights only; --model NET gives the rest")
    if not binary and net is not None and net != made:
        attrs[MESSAGE] = to_text(net)
    if file is not None:
        # a net that the model holds itself stays
        attrs.setdefault(NET, file.text)
    model = replace(model, attrs=dict(sorted(attrs.items())))  # as HDF5 has them
    if form in ARRAYS and model.diffs:
        remarks.append(f"{form} has no place for diffs, which are left out")
    written = write_in_format(path, model, net or NetParameter(), form, known)
    sizes = [values.size for blobs in written.values() for values in blobs.values()]
    return Converted("model", form, len(sizes), sum(sizes), tuple(remarks))


def _check_other(source: Path, path: Path) -> None:
    """Raises UsageError for a file that would overwrite the one that it is made of."""
    # by file, not by name: a link may lead to it
    if path.exists() and source.exists() and os.path.samefile(source, path):
        raise UsageError(f"{path}: is the file to convert; give another name")


def stored_net(path: Path, dialect: str | None = None) -> tuple[Any, str]:
    """The NetParameter in a binary model without its blobs, in today's form, and what was old about it.

    `dialect`: see decode_net, whose errors it raises.
    """
    with container.opened(path) as raw:
        data = read_net(raw, path)
    net = decode_net(data, str(path), dialect)
    if not net.layers:
        return net, ""
    old = "V0" if any(layer.HasField("layer") for layer in net.layers) else "V1"
    return net_from_message(net, str(path)).message, f"its {old} layers have become today's"


def _own_net(model: ModelFile) -> NetFile | None:
    return parse_net(model.attrs[NET], f"<net in {model.path}>") if NET in model.attrs else None


def training_message(file: NetFile) -> Any:
    """What a binary model of the training net holds of it; of the TEST net where there is no other.

    Where neither is a net without a stage that only a solver or a caller names, every layer of the file once.
    """
    for phase in (TRAIN, TEST):
        with suppress(ForceregError):
            return net_message(build_spec(file, net_state(phase, file.message.state, net_state(phase))))
    net = NetParameter(name=file.message.name)
    net.layer.extend({layer.name: layer for layer in reversed(file.message.layer)}.values())
    return net


def write_in_format(path: Path, model: ModelFile, net: Any, form: str, file: NetFile | None = None) -> Blobs:
    """Writes a model, each shared blob as its format has it, and returns its blobs. `net`: as `training_message`.

    `form`: of ENDINGS.
    `file`: the net to ask for the shapes of blobs that are shared in another one. Raises ForceregError.
    """
    blobs = everywhere(model, net, file) if form == "binary" else owned(model.layers, net)
    order = [layer.name for layer in net.layer if layer.name in blobs]
    blobs = {name: blobs[name] for name in dict.fromkeys([*order, *blobs])}
    diffs = {name: model.diffs.get(name, {}) for name in blobs} if model.diffs else None
    if form in ARRAYS:
        write_arrays(path, form, blobs, model.attrs)
        return blobs
    if form == "hdf5":
        write_model(path, blobs, diffs, model.attrs)
        return blobs
    whole = NetParameter()
    whole.CopyFrom(net)
    for name, held in blobs.items():
        if sorted(held) != list(range(len(held))):
            raise ForceregError(
                f"{model.path}: layer {name!r} holds blobs {sorted(held)} and not all before them (another layer's?), "
                "which a binary file must; give the net by --model"
            )
        if held and name not in order:
            # weights of layers that the net lacks aren't lost, under their name alone
            whole.layer.add(name=name)
    write_model(path, blobs, diffs, model.attrs, whole)
    return blobs


# -- blobs that layers share


def shared(net: Any) -> Iterator[tuple[str, int, str, int, bool]]:
    """(layer, position, owner, its position, whether in another shape) of every blob that isn't its layer's own."""
    owners: dict[str, tuple[str, int]] = {}
    for layer in net.layer:
        for index, param in enumerate(layer.param):
            if param.name and (owner := owners.setdefault(param.name, (layer.name, index))) != (layer.name, index):
                yield layer.name, index, *owner, param.share_mode == _PERMISSIVE


def everywhere(model: ModelFile, net: Any, file: NetFile | None = None) -> dict[str, dict[int, np.ndarray]]:
    """A model's blobs with those that layers share under each of them. Raises ForceregError as `write_in_format`."""
    found = {name: dict(blobs) for name, blobs in model.layers.items()}
    shapes: Mapping[str, Any] | None = None
    for name, index, owner, at, reshaped in shared(net):
        if at in found.get(owner, {}) and index not in found.setdefault(name, {}):
            values = found[owner][at]
            if reshaped:
                shapes = shapes if shapes is not None else _shapes(model, file)
                values = values.reshape(shapes[name][index])
            found[name][index] = values
    return {name: dict(sorted(blobs.items())) for name, blobs in found.items()}


def _shapes(model: ModelFile, file: NetFile | None) -> Mapping[str, Any]:
    try:
        if file is None:
            raise ForceregError("the file holds no net")
        net = meta_net(file, TRAIN, model.input_shapes)
    except ForceregError as error:
        raise ForceregError(
            f"{model.path}: has blobs that are shared in another shape (PERMISSIVE), which only the net tells: {error}"
        ) from error
    return {name: [tuple(blob.shape) for blob in blobs] for name, blobs in net.params.items()}


def owned(layers: Blobs, net: Any) -> dict[str, dict[int, np.ndarray]]:
    """The blobs without those that are another layer's, number for number in the same shape."""
    found = {name: dict(blobs) for name, blobs in layers.items()}
    for name, index, owner, at, _ in shared(net):
        mine, theirs = found.get(name, {}).get(index), found.get(owner, {}).get(at)
        # numbers that differ are no copy of the owner's, whatever the net says: both stay
        if mine is not None and theirs is not None and mine.shape == theirs.shape and same(mine, theirs):
            del found[name][index]
    return found


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all bits of two arrays of float32 are equal."""
    # as bits: NaN equals itself, and 0 isn't -0
    return float_bytes(one) == float_bytes(other)


# -- states


def _state(state: StateFile, path: Path, binary: bool) -> Converted:
    if state.legacy:
        raise ForceregError(
            f"{state.path}: its history has blobs of four axes, whose shapes only training tells; resume from it and "
            "let that write the next one"
        )
    learned = _learned(state, binary)
    write_state(path, state.iteration, state.current_step, learned, state.history, state.extra, binary)
    sizes = [values.size for values in state.history]
    form = "binary" if binary else "hdf5"
    return Converted("solver state", form, len(sizes), sum(sizes), (f"its weights are {learned}",))


def _learned(state: StateFile, binary: bool) -> str:
    """The weights that the new state names: those of its own format where they are already, else the old ones."""
    plain = state.learned_net.removesuffix(".h5")
    wanted = plain if binary else f"{plain}.h5"
    places = (Path(wanted), state.path.parent / Path(wanted).name)
    return wanted if any(place.is_file() for place in places) else state.learned_net
