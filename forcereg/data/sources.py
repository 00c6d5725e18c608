"""Importing this module registers every data layer type; a new one is a file beside it, named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import forcereg.registry as registry
from forcereg.data import database, dummy_data, hdf5_data, image_data, memory_data, window_data
from forcereg.data.feed import Feed, FeedContext
from forcereg.errors import ForceregError

if TYPE_CHECKING:
    from forcereg.schema.spec import LayerSpec

__all__ = ["database", "dummy_data", "hdf5_data", "image_data", "memory_data", "open_source", "window_data"]


def open_source(spec: LayerSpec, context: FeedContext) -> Feed:
    """The feed of a data layer, which holds values even if the net is built without any (device meta).

    Raises ForceregError.
    """
    with torch.device("cpu"):
        feed: Feed = registry.source.get(spec.type)(spec, context)
    try:
        # behind the feed, whose own words about a field say more
        spec.check_numbers()
    except ForceregError:
        feed.close()
        raise
    return feed
