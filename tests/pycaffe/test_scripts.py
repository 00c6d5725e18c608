"""Scripts in the style of public ones, run unchanged by `forcereg python`; what they find is checked from outside."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import forcereg.pycaffe as caffe
from tests.nursery import Nursery

SCRIPTS = Path(__file__).with_name("scripts")
Script = Callable[..., list[str]]

DETECTOR = """
name: "detector"
input: "data" input_shape { dim: 1 dim: 3 dim: 12 dim: 12 }
input: "im_info" input_shape { dim: 1 dim: 3 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 4 stride: 4 weight_filler { type: "xavier" } } }
layer { name: "score" type: "Convolution" bottom: "conv" top: "score"
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "cls_prob" type: "Softmax" bottom: "score" top: "cls_prob" }
layer { name: "bbox_pred" type: "Convolution" bottom: "conv" top: "bbox_pred"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "silence" type: "Silence" bottom: "im_info" }
"""


@pytest.fixture
def script(nursery: Nursery, workshop: Path, tmp_path: Path) -> Script:
    """`script("name", *args)`: the lines that it prints; `@name` in arguments is a file of the workshop."""

    def run(name: str, *args: str) -> list[str]:
        given = [str(workshop / arg[1:]) if arg.startswith("@") else arg for arg in args]
        done = nursery.run("-m", "forcereg", "python", str(SCRIPTS / f"{name}.py"), *given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines()

    return run


def net(workshop: Path, name: str = "deploy", weights: str | Path = "bands.caffemodel") -> Any:
    return caffe.Net(str(workshop / f"{name}.prototxt"), caffe.TEST, weights=str(workshop / weights))


def test_binary_caffemodel_listed(script: Script) -> None:
    lines = script("list_caffemodel", "@bands.caffemodel")
    assert "conv1    Convolution    [(6, 1, 5, 5), (6,)] 156" in lines
    assert any(line.startswith("bn1      BatchNorm      [(6,), (6,), (1,)]") for line in lines)
    assert lines[-1].startswith("Bands: ") and lines[-1].endswith(f"{156 + 13 + 12 + 12 * 97 + 39} parameters")


def test_mean_file_converted(script: Script, workshop: Path, tmp_path: Path) -> None:
    assert script("convert_mean", "@mean.binaryproto", "mean.npy")[-1].startswith("(1, 12, 12) ")
    mean = np.load(tmp_path / "mean.npy")
    blob = caffe.proto.caffe_pb2.BlobProto.FromString((workshop / "mean.binaryproto").read_bytes())
    assert np.array_equal(mean.ravel(), np.array(blob.data))


def test_features_into_hdf5(script: Script, workshop: Path, tmp_path: Path) -> None:
    lines = script(
        "extract_features", "--model", "@train_val.prototxt", "--weights", "@bands.caffemodel", "features.h5"
    )
    assert lines == ["wrote 60 x 12 features"]
    with h5py.File(tmp_path / "features.h5") as found, h5py.File(workshop / "test.h5") as images:
        assert np.array_equal(found["label"], images["label"])
        plain = net(workshop)
        expected = plain.forward_all(["ip1"], data=images["data"][:])["ip1"]
        # the net's ReLU is in place, and behind where the script ends
        np.testing.assert_allclose(np.maximum(found["ip1"], 0), expected, rtol=1e-4, atol=1e-5)


def test_filters_as_a_picture(script: Script, tmp_path: Path) -> None:
    lines = script("visualize_filters", "@deploy.prototxt", "@bands.caffemodel", "filters.png", "@band_0.png")
    assert lines[0] == "data\t(10, 1, 12, 12)" and "conv1\t(6, 1, 5, 5)" in lines
    assert lines[-1].startswith("answers (27, 27), strongest filter ")
    with Image.open(tmp_path / "filters.png") as picture:
        assert picture.size == (180, 180)


def test_accuracy_by_class(script: Script) -> None:
    options = ("--proto", "@deploy.prototxt", "--model", "@bands.caffemodel", "--lmdb", "@test_lmdb")
    lines = script("accuracy_by_class", *options)
    assert [line.split(":")[0] for line in lines[:3]] == ["class 0", "class 1", "class 2"]
    assert lines[3].endswith(" of 60") and float(lines[3].split()[1]) > 0.8


def test_ensemble(script: Script, tmp_path: Path, workshop: Path) -> None:
    other = net(workshop)
    other.params["score"][0].data[...] *= 0.5
    other.save(str(tmp_path / "other.caffemodel"))
    images = [f"@band_{label}.png" for label in range(3)]
    lines = script("ensemble", "@deploy.prototxt", "@bands.caffemodel", "other.caffemodel", "--", *images)
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    mean = pickle.loads((tmp_path / "ensemble.pkl").read_bytes())["mean"]
    pixels = np.stack([caffe.io.load_image(str(workshop / name[1:]), False).transpose(2, 0, 1) for name in images])
    one, two = net(workshop).forward_all(data=pixels)["prob"], other.forward_all(data=pixels)["prob"]
    np.testing.assert_allclose(mean, (2 * one + two) / 3, rtol=1e-4, atol=1e-6)


def test_weights_pruned_while_training(script: Script, tmp_path: Path, workshop: Path) -> None:
    lines = script("prune_weights", "@solver.prototxt", "@bands.caffemodel", "pruned.caffemodel", "@deploy.prototxt")
    assert "conv1: 0.60 zeros" in lines and "ip1: 0.60 zeros" in lines
    assert [line.split(",")[0] for line in lines[:2]] == ["Iteration 1", "Iteration 6"]
    pruned = net(workshop, weights=tmp_path / "pruned.caffemodel").params["conv1"][0].data
    old = net(workshop).params["conv1"][0].data
    kept = pruned != 0
    assert (
        kept.sum() == 60
        and abs(old[kept]).min() >= abs(old[~kept]).max()
        and not np.array_equal(pruned[kept], old[kept])
    )


def test_batch_norm_folded(script: Script, tmp_path: Path) -> None:
    (line,) = script("fold_batchnorm", "@deploy.prototxt", "@bands.caffemodel", "folded")
    assert line.startswith("layers 10 -> 8, largest difference ")
    folded = caffe.Net(str(tmp_path / "folded.prototxt"), str(tmp_path / "folded.caffemodel"), caffe.TEST)
    assert list(folded.params) == ["conv1", "ip1", "score"]


def test_rate_found(script: Script) -> None:
    lines = script("find_rate", "@solver.prototxt")
    assert int(lines[0].split()[0]) > 5 and 1e-3 < float(lines[1].split()[-1]) < 10


def test_detector_s_loop(script: Script, tmp_path: Path) -> None:
    (tmp_path / "detector.prototxt").write_text(DETECTOR)
    caffe.Net(str(tmp_path / "detector.prototxt"), caffe.TEST).save(str(tmp_path / "small.caffemodel"))
    lines = script(
        "detect_loop", "--def", "detector.prototxt", "--net", "small.caffemodel", "@band_0.png", "@band_1.png"
    )
    assert lines[:3] == [
        "['band_0.png', 'band_1.png']", "im_detect: 1/2 (1, 3, 24, 24)", "im_detect: 2/2 (1, 3, 24, 24)"
    ]  # fmt: skip
    boxes = pickle.loads((tmp_path / "small_detections.pkl").read_bytes())
    assert len(boxes) == 3 and boxes[0] == [[], []] and all(one.shape[1] == 5 for one in boxes[1])
    assert lines[3] == f"{sum(len(one) for of_class in boxes for one in of_class)} boxes"


NOTEBOOK = """
import nbformat, sys
from nbclient import NotebookClient
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in {cells!r}])
NotebookClient(book, timeout=120, kernel_name="python3", resources={{"metadata": {{"path": "."}}}}).execute()
print("".join(output.get("text", "") for cell in book.cells for output in cell.outputs))
"""


def test_a_script_as_a_notebook(workshop: Path, tmp_path: Path) -> None:
    """By Jupyter's client, in a kernel of its own: cell by cell, behind a first one that loads the extension."""
    pytest.importorskip("nbclient", reason="nbclient runs notebooks: pip install 'forcereg[jupyter]'")
    pytest.importorskip("ipykernel", reason="ipykernel runs notebooks: pip install 'forcereg[jupyter]'")
    imports, _, code = (SCRIPTS / "visualize_filters.py").read_text().partition("\n\n\ndef ")
    names = ("deploy.prototxt", "bands.caffemodel", "", "band_0.png")
    given = ["", *(str(workshop / name) if name else str(tmp_path / "filters.png") for name in names)]
    cells = ["%load_ext forcereg.pycaffe", imports, f"sys.argv = {given!r}", "def " + code]
    call = [sys.executable, "-W", "ignore", "-c", NOTEBOOK.format(cells=cells)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers (27, 27), strongest filter " in done.stdout and (tmp_path / "filters.png").exists()
