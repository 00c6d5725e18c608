"""Nets with random weights as snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.snapshot import write_model


def snapshot_of(model: Any, path: Path, seed: int = 1) -> Net:
    """Writes a net's values from a seed, with its text, as a snapshot; the net."""
    net = load_net(model, seed=seed)
    blobs = {name: {at: blob.detach().numpy() for at, blob in enumerate(held)} for name, held in net.params.items()}
    write_model(path, blobs, attrs={"forcereg_net": net.spec.text})
    return net
