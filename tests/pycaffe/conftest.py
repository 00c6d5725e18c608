"""What tests of Caffe's Python interface start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forcereg.pycaffe as caffe
from forcereg.pycaffe import state
from forcereg.pycaffe.launch import install, lent
from tests.pycaffe.nets import DEPLOY, TRAINED, net_of
from tests.pycaffe.workshop import furnish

IMAGES = """
name: "small"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 4 dim: {channels} dim: 9 dim: 9 }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: 5 }} }}
layer {{ name: "sig" type: "Sigmoid" bottom: "ip" top: "prob" }}
"""


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Modes and seeds of one test are its own."""
    before = vars(state.STATE).copy()
    yield
    vars(state.STATE).update(before)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`import caffe` works while a test runs; its log is quiet."""
    monkeypatch.setenv("GLOG_minloglevel", "2")
    with lent():
        install()
        yield


@pytest.fixture
def deploy(tmp_path: Path) -> Any:
    """The net DEPLOY, phase TEST."""
    return net_of(DEPLOY, tmp_path)


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    """The net TRAINED, phase TRAIN."""
    return net_of(TRAINED, tmp_path, 0)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with color.prototxt and grey.prototxt, their .caffemodel, and the images a.png, b.png."""
    folder, random = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    for channels, name in ((3, "color"), (1, "grey")):
        (folder / f"{name}.prototxt").write_text(IMAGES.format(channels=channels))
        net = caffe.Net(str(folder / f"{name}.prototxt"), caffe.TEST)
        # so small that scores of pixels to 255 aren't 0 or 1
        net.params["ip"][0].data[...] = random.normal(size=net.params["ip"][0].data.shape) / 1000
        net.save(str(folder / f"{name}.caffemodel"))
    pixels = random.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[::-1]).save(folder / "b.png")
    return folder


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `furnish`."""
    return furnish(tmp_path_factory.mktemp("workshop"))
