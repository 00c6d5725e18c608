"""What a snapshot holds beside Caffe's fields: data cursors, hidden states, random state, the loss window."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.feed import Feed
from forcereg.net.module import Net
from forcereg.solver.window import LossWindow


def pack(
    net: Net, values: Mapping[tuple[str, int], Tensor] | None = None, everywhere: bool = False
) -> dict[str, dict[int, np.ndarray]]:
    """Layer -> blob index -> array for every layer; borrowed blobs only under their owner, unless `everywhere`.

    With `values`, those instead of the blobs (the last update, for snapshot_diff), for borrowers too.
    """
    shared, packed = net.shared, {}
    for name, blobs in net.params.items():
        packed[name] = {
            index: to_array(blob if values is None else values[_owner(shared, name, index)].reshape(blob.shape))
            for index, blob in enumerate(blobs)
            if everywhere or values is not None or f"{name}/{index}" not in shared
        }
    return packed


def _owner(shared: Mapping[str, str], name: str, index: int) -> tuple[str, int]:
    layer, _, position = shared.get(f"{name}/{index}", f"{name}/{index}").rpartition("/")
    return layer, int(position)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any device and layout as a contiguous array."""
    # contiguous: files have Caffe's order of axes, whatever the layout here
    return tensor.detach().cpu().contiguous().numpy()


def feeds(nets: Mapping[str, Net]) -> dict[str, Feed]:
    """All feeds, by the names that a state has for them."""
    return {f"{key}/{name}": feed for key, net in nets.items() for name, feed in net.feeds.items()}


def _carried(nets: Mapping[str, Net]) -> dict[str, dict[str, Tensor]]:
    modules = {f"{key}/{spec.name}": module for key, net in nets.items() for spec, module in net.built}
    carried = {name: module.carried() for name, module in modules.items() if module is not None}
    return {name: tensors for name, tensors in carried.items() if tensors}


def extra_state(nets: Mapping[str, Net], losses: LossWindow, device: torch.device) -> dict[str, Any]:
    """Everything that an exact resume needs beyond weights and history; a copy. `nets` by the names used in it."""
    return {
        "feeds": {
            str(number): {"name": name, "state": _plain(feed.state_dict())}
            for number, (name, feed) in enumerate(sorted(feeds(nets).items()))
        },
        "carried": {
            name: {key: to_array(tensor.clone()) for key, tensor in tensors.items()}
            for name, tensors in _carried(nets).items()
        },
        "random": _random(device),
        "losses": to_array(losses.values.clone()),
        "loss_count": losses.count,
    }


def _random(device: torch.device) -> dict[str, np.ndarray]:
    """Where random numbers stand. Dropout's masks come from these; data has generators of its own, in its feeds."""
    random = {"cpu": torch.get_rng_state().numpy()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return random


def _put_random(random: Mapping[str, np.ndarray], device: torch.device) -> None:
    if "cpu" in random:
        torch.set_rng_state(torch.from_numpy(np.array(random["cpu"])))
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(torch.from_numpy(np.array(random["cuda"])), device)


@contextlib.contextmanager
def rewound(net: Net, device: torch.device) -> Iterator[None]:
    """Behind the block the net's data, its hidden states and random numbers are where they were before."""
    positions = [(feed, feed.state_dict()) for feed in net.feeds.values()]
    carried = [(one, one.clone()) for tensors in _carried({"": net}).values() for one in tensors.values()]
    random = _random(device)
    yield
    for feed, position in positions:
        feed.load_state_dict(position)
    for tensor, kept in carried:  # in place, and of as many streams as before: the layer holds this tensor
        tensor.resize_(kept.shape).copy_(kept)
    _put_random(random, device)


def unpack(
    extra: Mapping[str, Any],
    nets: Mapping[str, Net],
    losses: LossWindow,
    device: torch.device,
    warn: Callable[[str], None],
) -> None:
    """Puts `extra_state` back, which `saved.check_extra` has looked at. Warns of layers that it doesn't know."""
    saved = {entry["name"]: entry["state"] for entry in extra["feeds"].values()}
    for name, feed in feeds(nets).items():
        try:
            feed.load_state_dict(_tensors(saved[name]))
        except KeyError:  # none, or that of another type of layer
            warn(f"the state holds no position for data layer '{name}'; it starts from the beginning")
    unpack_carried(extra.get("carried", {}), nets, warn)  # this and the next are another rank's, if that had any
    _put_random(extra.get("random", {}), device)
    losses.load(extra["losses"], extra["loss_count"])


def unpack_carried(
    saved: Mapping[str, Mapping[str, np.ndarray]], nets: Mapping[str, Net], warn: Callable[[str], None]
) -> None:
    """Puts hidden states back, by layer name; where `saved` lacks a layer's they become zeros, with a warning."""
    for name, tensors in _carried(nets).items():
        arrays = {key: torch.from_numpy(np.array(array)) for key, array in saved.get(name, {}).items()}
        known = all(key in arrays and arrays[key].shape[1:] == tensor.shape[1:] for key, tensor in tensors.items())
        for key, tensor in tensors.items():
            if known:  # with as many streams (axis 0) as were carried, and in place: the layer holds this tensor
                tensor.resize_(arrays[key].shape).copy_(arrays[key])
            else:
                tensor.zero_()
        if not known:
            warn(f"the state holds no hidden state for layer '{name}'; it starts from zeros")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return to_array(value) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
