"""Nets with data layers: their feeds, and shapes given instead."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net, meta_net
from forcereg.schema import TEST, TRAIN
from forcereg.schema.text import parse_net
from tests.data.lmdbs import numbered, put_lmdb
from tests.small_nets import fails, inputs, ip

# -- data layers and shapes

DATA = """
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "db" batch_size: 3 backend: LMDB } transform_param { scale: 0.5 } }
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "db" batch_size: 2 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_given_shapes_replace_the_data() -> None:
    net = load_net(DATA, input_shapes={"data": (5, 1, 4, 4), "label": (5,)})
    assert net.inputs == ("data", "label") and not net.feeds and net.shapes["ip"] == (5, 10)
    assert net(data=torch.ones(5, 1, 4, 4), label=torch.zeros(5))["loss"].item() == pytest.approx(np.log(10))
    with pytest.raises(ForceregError, match="needs input blobs data, label"):
        net()


def test_shapes_for_some_tops_only() -> None:
    text = fails(DATA, input_shapes={"data": (5, 1, 4, 4)})
    assert text == "<text>:4: layer 'd': input_shapes lacks label; give the shapes of all its tops or of none"


def test_data_is_read_when_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_lmdb(tmp_path / "db", numbered(4))
    net = load_net(DATA, phase="TRAIN")
    try:
        out = net(blobs=["data", "label"])
        assert out["data"].shape == net.shapes["data"] == (3, 1, 4, 5)
        assert out["label"].tolist() == [0, 1, 2]
        assert net(blobs=["label"])["label"].tolist() == [3, 0, 1]
        given = net(data=torch.ones(1, 1, 4, 5), label=torch.tensor([7.0]), blobs=["label"])
        assert given["label"].tolist() == [7]
        assert net(blobs=["label"])["label"].tolist() == [2, 3, 0]
        copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        assert copied(blobs=["data"])["data"].shape == (3, 1, 4, 5)
        copied.close()
    finally:
        net.close()


def test_labels_of_the_data_are_checked_against_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_lmdb(tmp_path / "db", numbered(12))
    net = load_net(DATA.replace("num_output: 10", "num_output: 7"))
    try:
        with pytest.raises(ForceregError, match="7"):
            for _ in range(6):
                net()
    finally:
        net.close()


@pytest.mark.parametrize("name", ["d", "loss"])
def test_data_layers_have_names_of_their_own(name: str) -> None:
    again = DATA.replace("{ phase: TEST }", "{ phase: TRAIN }").replace('name: "loss"', f'name: "{name}"')
    text = again.replace('top: "data"', 'top: "other"', 1).replace('top: "label"', 'top: "other2"', 1)
    shapes = {top: (2,) for top in ("data", "label", "other", "other2")}
    assert "layer 'd': the name is taken by <text>:2: layer 'd'" in fails(text, phase="TRAIN", input_shapes=shapes)


def test_meta_net_allocates_nothing() -> None:
    text = "\n".join([inputs(x=(40_000, 40_000)), ip("ip", "x", "y", 40_000)])
    assert meta_net(parse_net(text), TEST).shapes == {"x": (40_000, 40_000), "y": (40_000, 40_000)}
    shapes = meta_net(parse_net(DATA), TRAIN, {"data": (7, 1, 4, 4), "label": (7,)}).shapes
    assert shapes["ip"] == (7, 10) and shapes["loss"] == ()
