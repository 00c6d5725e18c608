"""`.safetensors`, `.npz` and `.caffemodel` of all that is a net, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

import forcereg
from forcereg.errors import ForceregError
from forcereg.snapshot import read_model, write_model
from tests.exports.nets import snapshot_of
from tests.small_nets import inputs, ip
from tests.snapshot.test_content import same

TWO_INPUTS = (
    inputs(**{"left side": (2, 3), "right": (2, 3)}) + ip("p/é", "left side", "y", 4) + ip("q", "right", "z", 4)
)


def test_weights_of_all_that_is_a_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with and without a net's text, a prototxt with its weights, solver states, nets in memory, links."""
    monkeypatch.chdir(tmp_path)
    net = snapshot_of(TWO_INPUTS, Path("a.h5"))
    blobs = {name: held for name, held in read_model("a.h5").layers.items() if held}
    write_model("plain.h5", blobs)
    Path("net.prototxt").write_text(net.spec.text)
    for given, weights in (("a.h5", None), ("plain.h5", None), ("net.prototxt", "plain.h5"), (net, None)):
        done = forcereg.export(given, "ü b.npz", weights=weights)
        found = read_model("ü b.npz")
        assert done.summary == "a model in npz, 4 blobs of 32 values" and same(found.layers, blobs)
        assert ("forcereg_net" in found.attrs) == (given != "plain.h5")
    os.symlink("a.h5", "b.safetensors")
    for given, out, weights, says in (
        ("net.prototxt", "c.npz", None, "net.prototxt: is a net without weights; give them by --weights FILE"),
        ("a.h5", "c.npz", "plain.h5", "a.h5 is a snapshot, which has weights; leave out --weights"),
        ("a.h5", "b.safetensors", None, "b.safetensors: is the file to convert; give another name"),
        ("none.h5", "c.npz", None, "none.h5: no such file"),
        ("net.prototxt", "c.npz", "other.h5", "none of its layers with weights is in the net"),
    ):
        write_model("other.h5", {"other": {0: np.ones(2)}})
        with pytest.raises(ForceregError, match=re.escape(says)):
            forcereg.export(given, out, weights=weights)
    assert not Path("c.npz").exists()
