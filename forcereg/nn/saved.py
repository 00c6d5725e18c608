"""A model's weights in safetensors, with what its chains are, for any build of the model to take: no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from os import fspath
from typing import Any

import torch
from torch import Tensor, nn

from forcereg.errors import ForceregError
from forcereg.lowrank.factor import Factors, Part
from forcereg.nn.fold import replace
from forcereg.nn.kinds import KINDS, chains_of, filters, groups_of, is_transposed, known_slots, outline, stands_for
from forcereg.nn.select import bare
from forcereg.nn.trace import NORMS
from forcereg.system.arguments import checked, wrong
from forcereg.system.files import check_regular, write_bytes
from forcereg.system.paths import StrPath
from forcereg.system.sidefiles import of_form, parse_json

ATTRIBUTE = "forcereg.nn"
"""The entry of the file's metadata that says how the model differs from one that was just built."""
VERSION = 1
SHOWN = 3
"""Names in an error."""


@dataclass(frozen=True)
class Structure:
    """What a model has become. `chains`: layer -> the groups of each part by the part's name, in order.

    `folded`: what is an Identity. `shared`: name of a tensor -> the name under which it is in the file.
    """

    version: int
    chains: dict[str, dict[str, int]]
    folded: list[str]
    shared: dict[str, str]


@checked
def save(model: nn.Module, path: StrPath) -> None:
    """Write the weights of a model, decomposed or not, and a description of its chains, as one .safetensors file.

    Weights that several modules share are written once. The file is replaced in one step. Raises ForceregError if the
    system refuses, or without the library safetensors.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 16, 3)
    >>> made = forcereg.nn.decompose(conv, torch.randn(1, 3, 8, 8), rule=forcereg.Ranks([4]))
    >>> forcereg.nn.save(made.model, "small.safetensors")
    >>> forcereg.nn.load(lambda: torch.nn.Conv2d(3, 16, 3), "small.safetensors")
    Sequential(
      (lowrank): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)
      (linear): Conv2d(4, 16, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    if not isinstance(model, nn.Module):
        raise wrong("model", model, "a torch.nn.Module")
    inside = bare(model)
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in inside.state_dict(keep_vars=True).items():
        if (known := first.setdefault(id(tensor), name)) != name:
            shared[name] = known
        else:
            # a copy of what is a part of another's memory, which safetensors refuses
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    chains = {name: {part: groups_of(one) for part, one in chain.named_children()} for name, chain in chains_of(inside)}
    folded = [name for name, one in inside.named_modules() if type(one) is nn.Identity]
    said = json.dumps(vars(Structure(VERSION, chains, folded, shared)))
    # one entry alone: the library writes several in an order by chance
    write_bytes(fspath(path), _library().torch.save(tensors, {ATTRIBUTE: said}))


@checked
def load(build: Callable[[], nn.Module], path: StrPath) -> nn.Module:
    """The model that `build` makes, with the chains and weights of a file by `save`.

    Layers get the file's chains and BatchNorms that were folded become Identities; then every tensor must have the
    name, shape and dtype that the file has. Raises ForceregError that names what differs, for files that can't be read
    or are no such file, and without the library safetensors.

    >>> import torch
    >>> forcereg.nn.save(torch.nn.Linear(4, 2), "linear.safetensors")
    >>> forcereg.nn.load(lambda: torch.nn.Linear(4, 2), "linear.safetensors")
    Linear(in_features=4, out_features=2, bias=True)
    >>> forcereg.nn.load(lambda: torch.nn.Linear(4, 3), "linear.safetensors")
    Traceback (most recent call last):
    forcereg.errors.ForceregError: linear.safetensors: 'weight' is (2, 4) torch.float32 there; the model ...
    """
    name = fspath(path)
    structure, tensors = _read(name)
    model = build()
    if not isinstance(model, nn.Module):
        raise wrong("build", build, f"a function that returns a torch.nn.Module, not a {type(model).__name__}")
    try:
        model = _built(model, structure, tensors)
        own = model.state_dict(keep_vars=True)
        for alias, known in structure.shared.items():
            if alias in tensors or known not in tensors:
                raise ForceregError(f"'{alias}' should be the same as '{known}'; the file is damaged")
            tensors[alias] = tensors[known]
        _compare(own, tensors)
    except ForceregError as error:
        raise ForceregError(f"{name}: {error}") from None
    model.load_state_dict(tensors)
    return model


def _library() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ForceregError('a model is saved by safetensors; install it with pip install "forcereg[export]"') from None
    return safetensors


def _read(name: str) -> tuple[Structure, dict[str, Tensor]]:
    """What the file says, and its tensors. Raises ForceregError."""
    library = _library()
    try:
        check_regular(name)
        with library.safe_open(name, "pt") as file:
            said = (file.metadata() or {}).get(ATTRIBUTE)
            if said is None:
                raise ForceregError(f"{name}: isn't by forcereg.nn.save: its metadata has no '{ATTRIBUTE}'")
            structure = of_form(parse_json(said), Structure)
            return structure, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except OSError as error:
        raise ForceregError(f"{name}: {error.strerror or error}") from None
    except (ValueError, RuntimeError, OverflowError, library.SafetensorError) as error:
        raise ForceregError(f"{name}: no file by forcereg.nn.save: {error}") from None


# -- structure


def _built(model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with the file's chains, BatchNorms and biases; all of it bounded by the file's tensors."""
    if structure.version != VERSION:
        raise ForceregError(f"of version {structure.version}; this forcereg reads {VERSION}")
    modules = dict(model.named_modules())
    for name in structure.folded:
        if isinstance(modules.get(name), NORMS):
            model = replace(model, modules[name], nn.Identity())
    for name, groups in structure.chains.items():
        old = modules.get(name)
        layer: Any = ((standing := old and stands_for(old)) and standing.layer) or old
        if type(layer) not in KINDS:
            found = f"has a {type(old).__name__}" if old is not None else "has nothing"
            raise ForceregError(f"'{name}' is a chain there; the model that was built {found} of that name")
        key = f"{name}." if name else ""
        _give_bias(layer, f"{key}{list(groups)[-1] if groups else ''}.bias", tensors)
        made = outline(layer, _factors(name, layer, groups, tensors), layer.weight.device)
        model = replace(model, old, made.train(layer.training))  # type: ignore[arg-type]
    for name, one in model.named_modules():
        if type(one) in KINDS:
            _give_bias(one, f"{name}.bias" if name else "bias", tensors)
    return model


def _give_bias(layer: Any, key: str, tensors: Mapping[str, Tensor]) -> None:
    """A bias where only the file has one: that of a folded BatchNorm."""
    if layer.bias is None and key in tensors:
        layer.bias = nn.Parameter(layer.weight.new_empty(len(filters(layer))))


def _factors(name: str, layer: Any, groups: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Factors:
    """The chain by its shapes alone. Raises ForceregError where they aren't those of a chain for the layer."""
    slots = {tuple(slot.suffix for slot in one): one for one in known_slots()}.get(tuple(groups))
    if slots is None:
        raise ForceregError(f"'{name}' has parts {', '.join(groups)}; no method makes such a chain")
    key, whole, parts = f"{name}." if name else "", filters(layer).shape, []
    channels = into = whole[1] * groups_of(layer)
    for slot in slots:
        tensor, count = tensors.get(f"{key}{slot.suffix}.weight"), groups[slot.suffix]
        if tensor is None or tensor.dim() != len(whole) or not 1 <= count <= into:
            raise ForceregError(f"'{key}{slot.suffix}.weight' isn't there, or no part of a chain")
        kernel = [size if slot.owns(axis) else 1 for axis, size in enumerate(whole[2:])]
        rows, own = tensor.shape[:2]
        if is_transposed(layer) and any(map(slot.owns, range(len(kernel)))):
            rows, own = own * count, rows // count
        if list(tensor.shape[2:]) != kernel or own * count != into or rows % count or not rows:
            found = f"{tuple(tensor.shape)} in {count} groups"
            raise ForceregError(f"'{key}{slot.suffix}.weight' is {found}; the layer that was built is a {layer}")
        parts.append(Part(slot, torch.empty((rows, own, *kernel), device="meta"), count))
        into = rows
    if into != whole[0]:
        raise ForceregError(f"'{name}' gives {into} channels there; the layer that was built is a {layer}")
    return Factors((into,), nan, (channels,), groups_of(layer), tuple(parts))


def _compare(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ForceregError that names what differs."""
    if missing := [key for key in own if key not in tensors]:
        raise ForceregError(f"has no {_listed(missing)}, which the model that was built has")
    if unknown := [key for key in tensors if key not in own]:
        raise ForceregError(f"has {_listed(unknown)}, which the model that was built hasn't")
    for key, one in own.items():
        there = tensors[key]
        if (one.shape, one.dtype) != (there.shape, there.dtype):
            said = [f"{tuple(x.shape)} {x.dtype}" for x in (there, one)]
            raise ForceregError(f"'{key}' is {said[0]} there; the model that was built has {said[1]}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{one}'" for one in names[:SHOWN]) + more
