"""Nets for users: from a file, text or message, with or without weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forcereg import snapshot
from forcereg.cost import Shapes
from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.errors import ForceregError, did_you_mean
from forcereg.net.module import Net
from forcereg.schema import TEST, TRAIN, NetParameter, NetState
from forcereg.schema.rules import net_state, phase_number
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.text import NetFile, net_from_message, parse_net, read_net
from forcereg.system.arguments import checked, path, several, wrong
from forcereg.system.device import prepare
from forcereg.system.paths import find_root, listed


@checked
def load_net(
    model: str | os.PathLike[str] | Any,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    phase: str | int = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    budget: int = DEFAULT_BUDGET,
    workers: int = 0,
    allow_python_layers: bool = False,
) -> Net:
    """A net as a torch module.

    `model`: a path, prototxt text or NetParameter. `weights`: a .caffemodel, also as .h5, or several, later ones
    override; without them the fillers' values (drawn from `seed`). They go by layer name: a Python warning names
    layers with weights that the net lacks, and layers of the net that no file has. `input_shapes` gives data layers'
    top shapes, so that their sources need not exist; feed such a net by `net(data=...)`. `budget`: bytes of
    a decoded set, larger ones stream; `workers`: threads that decode, 0 for as many as cores; both for each data
    layer. `allow_python_layers`: run code that the net names in Python layers.
    Raises ForceregError, one line, for anything wrong in either file, and for weights that are none of the net's.

    >>> import torch
    >>> net = forcereg.load_net("deploy.prototxt", "net_iter_20.caffemodel.h5")
    >>> net(data=torch.zeros(1, 1, 8, 8))["prob"].shape
    torch.Size([1, 3])
    """
    device = named_device(device)
    file = net_file(model)
    spec = net_spec(file, phase, level, stages)
    for text in spec.warnings:
        warnings.warn(text, stacklevel=2)
    prepare(device)
    # on the CPU always: one seed gives the same weights on every device
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    context = FeedContext(root=spec.root, device=device, seed=seed, budget=budget, workers=workers)
    # built on the CPU, moved as a whole: sizes are refused before they take a device's memory
    net = Net(spec, context, input_shapes, generator, allow_python_layers).place(device)
    _check_given(net, input_shapes)
    if weights is None:
        return net
    paths = listed(several(path, "a path, or several in a list")("weights", weights))
    models = [snapshot.read_model(os.fspath(one)) for one in paths]
    found = [(model, snapshot.load_into(net.params, snapshot.suited(model, net), net.shared)) for model in models]
    if text := snapshot.remark(found):
        warnings.warn(text, stacklevel=2)
    return net


def shape_net(
    model: str | os.PathLike[str] | Any,
    phase: str | int = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_python_layers: bool = False,
) -> Net:
    """The net on the meta device: all shapes and blobs, but no memory and no values. Arguments as for `load_net`.

    Data layers whose shapes aren't given have their sources opened. Raises ForceregError.
    """
    spec = net_spec(net_file(model), phase, level, stages)
    for text in spec.warnings:
        warnings.warn(text, stacklevel=2)
    with torch.device("meta"):
        net = Net(spec, None, input_shapes, allow_python_layers=allow_python_layers)
    _check_given(net, input_shapes)
    return net


def named_device(name: str | torch.device) -> torch.device:
    """The device of that name. Raises UsageError for none."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise wrong("device", name, "a device of torch, as in cpu or cuda:0") from error


def _check_given(net: Net, input_shapes: Mapping[str, Sequence[int]] | None) -> None:
    for name in input_shapes or ():
        if name not in net.inputs:
            hint = did_you_mean(name, net.inputs) or f"; inputs are {', '.join(net.inputs) or 'none'}"
            raise ForceregError(f"{net.spec.filename}: a shape is given for '{name}', which is no input here{hint}")


def net_file(model: str | os.PathLike[str] | Any, dialect: str | None = None) -> NetFile:
    """A path, prototxt text (anything with a brace or a line break) or NetParameter as a NetFile.

    `dialect`: of a binary file, see forcereg.schema.text.decode_net.
    """
    if isinstance(model, NetFile):
        return model
    if isinstance(model, NetParameter):
        return net_from_message(model, "<NetParameter>")
    if isinstance(model, str) and ("{" in model or "\n" in model):
        return parse_net(model)
    if not isinstance(model, str | os.PathLike):
        raise ForceregError(f"model is a {type(model).__name__}; expected a path, prototxt text or NetParameter")
    return read_net(os.fspath(model), dialect=dialect)


def net_spec(file: NetFile, phase: str | int, level: int = 0, stages: Sequence[str] = ()) -> NetSpec:
    """The layers that `phase`, `level` and `stages` keep, and the root of the net's relative paths."""
    number = phase_number(phase)
    state = net_state(number, file.message.state, NetState(phase=number, stage=list(stages)))
    # 0, the default, leaves the level that the file says
    if level:
        state.level = level
    return build_spec(file, state, net_root(file))


def net_root(file: NetFile) -> Path:
    """Where a net's paths start when no solver says so: by its first data `source`."""
    for layer in file.message.layer:
        for field in ("data_param", "image_data_param", "hdf5_data_param", "window_data_param"):
            if layer.HasField(field) and getattr(layer, field).source:
                # a text or message lies nowhere, so nothing is looked for beside it
                naming = None if file.name.startswith("<") else file.name
                return find_root(getattr(layer, field).source, naming)
    return Path.cwd()


def net_shapes(
    file: NetFile,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Shapes | None:
    """Blob shapes of the net that costs are of (`costed_net`); None if they cannot be known.

    input_shapes: data layers' tops -> shapes, as snapshots keep them; else the sources are opened.
    """
    net = costed_net(file, input_shapes, root, allow_python_layers)
    return None if net is None else net.shapes


def costed_net(
    file: NetFile,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Net | None:
    """The net that costs are of, without any values: what is deployed computes as in the TEST phase.

    The TRAIN net where the TEST net can't be built, None where neither can; arguments as for `net_shapes`.
    """
    return max(
        meta_nets(file, input_shapes, root, allow_python_layers), key=lambda net: net.spec.phase == TEST, default=None
    )


def phase_net(
    file: NetFile,
    state: Any,
    given: Mapping[str, Sequence[int]] | None = None,
    known: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Net:
    """The net of a state (`rules.net_state`) without any values.

    `given`: shapes of inputs, as for `load_net`; `known`: shapes for a net whose own sources can't be opened. Raises
    ForceregError for a state without layers, data that isn't here, code that may not run.
    """
    spec = build_spec(file, state, root)
    try:
        return _shaped(spec, given, allow_python_layers)
    except ForceregError:
        if not known:
            raise
        # not at once: what the net's own sources say is truer than what a snapshot remembers
        return _shaped(spec, {**known, **(given or {})}, allow_python_layers)


def _shaped(spec: NetSpec, shapes: Mapping[str, Sequence[int]] | None, allow_python_layers: bool) -> Net:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # told where the net is trained
        return Net(spec, None, shapes, allow_python_layers=allow_python_layers)


def meta_net(
    file: NetFile,
    phase: int,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Net:
    """The net with all shapes, nothing allocated or filled. Raises ForceregError, also for absent data."""
    spec = build_spec(file, net_state(phase, file.message.state, net_state(phase)), root)
    with torch.device("meta"):
        return Net(spec, input_shapes=input_shapes, allow_python_layers=allow_python_layers)


def meta_nets(
    file: NetFile,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> Iterator[Net]:
    """The net of each phase without any values, of the phases that can be built; arguments as for `net_shapes`."""
    for phase in (TRAIN, TEST):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told where the net is trained
                net = meta_net(file, phase, input_shapes, root, allow_python_layers)
        except ForceregError:
            continue  # a phase without layers, a data source that is not here, code that may not run
        yield net
