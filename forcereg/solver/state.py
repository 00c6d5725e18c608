"""What a snapshot holds beside Caffe's fields, as plain data: data cursors, random state, the loss window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.feed import Feed
from forcereg.net import Net


def pack(net: Net, values: Mapping[tuple[str, int], Tensor] | None = None) -> dict[str, dict[int, np.ndarray]]:
    """Layer -> blob index -> array for every layer; borrowed blobs only under their owner.

    With `values`, those instead of the blobs (the last update, for snapshot_diff), for borrowers too.
    """
    shared, packed = net.shared, {}
    for name, blobs in net.params.items():
        packed[name] = {
            index: to_array(blob if values is None else values[_owner(shared, name, index)])
            for index, blob in enumerate(blobs)
            if values is not None or f"{name}/{index}" not in shared
        }
    return packed


def _owner(shared: Mapping[str, str], name: str, index: int) -> tuple[str, int]:
    layer, _, position = shared.get(f"{name}/{index}", f"{name}/{index}").rpartition("/")
    return layer, int(position)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any device and layout as a contiguous array."""
    return tensor.detach().cpu().contiguous().numpy()


def extra_state(feeds: Mapping[str, Feed], losses: Tensor, loss_count: int, device: torch.device) -> dict[str, Any]:
    """Everything that an exact resume needs beyond weights and history."""
    random = {"cpu": torch.get_rng_state().numpy()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return {
        "feeds": {
            str(number): {"name": name, "state": _plain(feed.state_dict())}
            for number, (name, feed) in enumerate(sorted(feeds.items()))
        },
        "random": random,
        "losses": to_array(losses),
        "loss_count": loss_count,
    }


def unpack(
    extra: Mapping[str, Any],
    feeds: Mapping[str, Feed],
    losses: Tensor,
    device: torch.device,
    warn: Callable[[str], None],
) -> int:
    """Puts `extra_state` back; the loss count. Warns of data layers that the state doesn't know."""
    saved = {entry["name"]: entry["state"] for entry in extra.get("feeds", {}).values()}
    for name, feed in feeds.items():
        if name in saved:
            feed.load_state_dict(_tensors(saved[name]))
        else:
            warn(f"the state holds no position for data layer '{name}'; it starts from the beginning")
    random = extra.get("random", {})
    if "cpu" in random:
        torch.set_rng_state(torch.from_numpy(np.array(random["cpu"])))
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(torch.from_numpy(np.array(random["cuda"])), device)
    window = np.array(extra.get("losses", ()))
    if window.shape != tuple(losses.shape):
        return 0
    losses.copy_(torch.from_numpy(window))
    return int(extra["loss_count"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return to_array(value) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
