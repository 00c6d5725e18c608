"""forcereg classify and forcereg detect: the options of Caffe's tools."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import forcereg
import forcereg.pycaffe as caffe
from forcereg.errors import ForceregError
from forcereg.pycaffe.tools import IMAGENET
from tests.commands.conftest import Cli, said
from tests.commands.conftest import cli as cli

NET = ("--model_def=color.prototxt", "-pretrained_model", "color.caffemodel")


@pytest.fixture
def folder(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `small` with a list of windows, as the working directory."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    (tmp_path / "windows.csv").write_text("filename,ymin,xmin,ymax,xmax\na.png,2,3,12,20\nb.png,0,0,9,9\n")
    (tmp_path / "images.txt").write_text("a.png\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def classifier(size: tuple[int, int], mean: np.ndarray | None) -> caffe.Classifier:
    settings = dict(mean=mean, raw_scale=255, channel_swap=(2, 1, 0))
    return caffe.Classifier("color.prototxt", "color.caffemodel", image_dims=size, **settings)


def test_a_folder_of_images(folder: Path, cli: Cli) -> None:
    code, out, err = cli("classify", *NET, "--images_dim", "12,13", "--ext=png", ".", "scores.npy")
    assert (code, err) == (0, "") and out.startswith("scored 2 images in ") and out.endswith("scores.npy: (2, 5)\n")
    images = [caffe.io.load_image(name) for name in ("a.png", "b.png")]
    np.testing.assert_array_equal(np.load("scores.npy"), classifier((12, 13), IMAGENET).predict(images))


def test_an_image_in_the_middle_with_a_mean_of_its_own(folder: Path, cli: Cli) -> None:
    np.save("mean.npy", np.random.default_rng(0).random((3, 20, 20)) * 255)
    code, out, _ = cli("classify", *NET, "-center_only", "--mean_file", "mean.npy", "a.png", "scores")
    assert code == 0 and "wrote scores.npy: (1, 5)" in out
    expected = classifier((256, 256), np.load("mean.npy")).predict([caffe.io.load_image("a.png")], oversample=False)
    np.testing.assert_allclose(np.load("scores.npy"), expected, rtol=1e-5)


def test_images_in_an_array_for_a_grey_net(folder: Path) -> None:
    images = np.random.default_rng(0).random((3, 11, 11, 1))
    np.save("images.npy", images)
    given = dict(model_def="grey.prototxt", pretrained_model="grey.caffemodel", images_dim=(9, 9))
    found = forcereg.classify("images.npy", "s.npy", channel_swap=(), input_scale=0.5, raw_scale=2, **given)
    plain = caffe.Classifier("grey.prototxt", "grey.caffemodel")
    np.testing.assert_allclose(found, plain.predict(images), rtol=1e-5)
    assert forcereg.classify("a.png", "s.npy", channel_swap=(), center_only=True, **given).shape == (1, 5)


def test_listed_windows(folder: Path, cli: Cli) -> None:
    code, out, err = cli("detect", *NET, "--crop_mode=list", "--context_pad", "2", "windows.csv", "found.csv")
    assert (code, err) == (0, "") and out.startswith("scored 2 windows in ")
    lines = (folder / "found.csv").read_text().splitlines()
    assert lines[0] == "filename,ymin,xmin,ymax,xmax,class0,class1,class2,class3,class4"
    assert lines[1].startswith("a.png,2,3,12,20,") and lines[2].startswith("b.png,0,0,9,9,")
    cli("detect", *NET, "--crop_mode=list", "--context_pad", "2", "windows.csv", "found.h5")
    with h5py.File("found.h5") as file:
        assert file["df/filename"].asstr()[:].tolist() == ["a.png", "b.png"]
        assert file["df/window"][1].tolist() == [0, 0, 9, 9]
        scores = np.array([[float(cell) for cell in line.split(",")[5:]] for line in lines[1:]])
        np.testing.assert_allclose(file["df/prediction"], scores, rtol=1e-5)


def test_a_mean_image_counts_by_channels(folder: Path) -> None:
    mean = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32) * 255
    np.save("mean.npy", mean)
    np.save("color.npy", mean.mean((1, 2)))
    given = dict(model_def="color.prototxt", pretrained_model="color.caffemodel", crop_mode="list", context_pad=0)
    one, two = (forcereg.detect("windows.csv", "o.csv", mean_file=f"{name}.npy", **given) for name in ("mean", "color"))
    np.testing.assert_allclose(one[0]["prediction"], two[0]["prediction"], rtol=1e-5)


BAD = [
    pytest.param("classify {net} none.png o.npy", "none.png: No such file or directory", id="no-image"),
    pytest.param("classify {net} . o.npy", ".: holds no *.jpg; say by --ext", id="empty-folder"),
    pytest.param(
        "classify {net} windows.csv o.npy", "windows.csv: the image inside cannot be decoded", id="no-picture"
    ),
    pytest.param(
        "classify {net} --images_dim 5,5 a.png o.npy", "expected the net's input, [9, 9], at least", id="small"
    ),
    pytest.param("classify {net} --images_dim 5 a.png o.npy", "images_dim is [5]; expected height and width", id="one"),
    pytest.param(
        "classify {net} --channel_swap 0 a.png o.npy", "channel_swap has 1 numbers, the net's input 3", id="swap"
    ),
    pytest.param(
        "classify {net} --mean_file bad.npy a.png o.npy", "bad.npy: Object arrays cannot be loaded", id="pickle"
    ),
    pytest.param("classify {net} --mean_file two.npy a.png o.npy", "mean_file has 2 channels, the net's", id="mean"),
    pytest.param("classify {net} --mean_file color.caffemodel a.png o.npy", "mean_file color.caffemodel", id="no-mean"),
    pytest.param("classify {net} a.png no/o.npy", "cannot write no/o.npy", id="no-folder"),
    pytest.param(
        "classify --pretrained_model no.caffemodel a.png o.npy", "Could not open file no.caffemodel", id="weights"
    ),
    pytest.param("classify --pretrained_model w --model_def no a.png o.npy", "no: no such file", id="net"),
    pytest.param(
        "classify {net} --channel_swap 2,a a.png o.npy", "--channel-swap is '2,a'; expected whole", id="letters"
    ),
    pytest.param("detect {net} windows.csv o.csv", "expected a name that ends in .txt", id="not-txt"),
    pytest.param("detect {net} --context_pad 2 images.txt o.csv", "selective_search_ijcv_with_python", id="search"),
    pytest.param(
        "detect {net} --crop_mode list windows.csv o.csv", "context_pad is 16; expected less than half", id="pad"
    ),
    pytest.param("detect {list} bad.csv o.csv", "bad.csv:3: is 'a.png,1,2,3'; expected a name and four", id="row"),
    pytest.param("detect {list} head.csv o.csv", "head.csv:1: has no column ymax; expected filename,", id="column"),
    pytest.param(
        "detect {list} out.csv o.csv", "out.csv: window 50, 50, 60, 60 has no pixel of its image", id="outside"
    ),
    pytest.param("detect {list} gone.csv o.csv", "gone.png: No such file or directory", id="gone"),
]


@pytest.mark.parametrize(("words", "expected"), BAD)
def test_one_line_for_what_is_wrong(words: str, expected: str, folder: Path, cli: Cli) -> None:
    head = "filename,ymin,xmin,ymax,xmax\n"
    np.save("two.npy", np.zeros(2))
    np.save("bad.npy", np.array([None]), allow_pickle=True)
    for name, text in {"bad": f"{head}a.png,1,2,3,4\na.png,1,2,3\n", "out": f"{head}a.png,50,50,60,60\n",
                       "head": "filename,ymin,xmin,xmax\n", "gone": f"{head}gone.png,1,1,5,5\n"}.items():  # fmt: skip
        (folder / f"{name}.csv").write_text(text)
    net = " ".join(NET)
    filled = words.format(net=net, list=f"{net} --crop_mode list --context_pad 0")
    code, _, err = cli(*filled.split())
    assert code in (1, 2) and expected in said(err)
    assert not (folder / "o.npy").exists() and not (folder / "o.csv").exists()


def test_python_layers_need_permission(folder: Path) -> None:
    (folder / "mine.py").write_text("import caffe\nclass Twice(caffe.Layer):\n    def setup(self, b, t): pass\n"
        "    def reshape(self, b, t): t[0].reshape(*b[0].data.shape)\n"
        "    def forward(self, b, t): t[0].data[...] = 2 * b[0].data\n"
        "    def backward(self, t, p, b): pass\n")  # fmt: skip
    net = (folder / "color.prototxt").read_text()
    net += 'layer { name: "twice" type: "Python" bottom: "prob" top: "two" '
    net += 'python_param { module: "mine" layer: "Twice" } }'
    (folder / "python.prototxt").write_text(net)
    given = dict(pretrained_model="color.caffemodel", images_dim=(9, 9))
    with pytest.raises(ForceregError, match="allow"):
        forcereg.classify("a.png", "o.npy", model_def="python.prototxt", **given)
    found = forcereg.classify("a.png", "o.npy", model_def="python.prototxt", allow_python_layers=True, **given)
    np.testing.assert_allclose(found, 2 * forcereg.classify("a.png", "o.npy", model_def="color.prototxt", **given))
