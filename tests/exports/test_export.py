"""`forcereg export`: which files there are, what is said, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from forcereg.net.load import load_net
from forcereg.schema.text import read_net
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import fresh_snapshot
from tests.conftest import TOP, RunCli
from tests.exports.nets import snapshot_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CONFIGS = TOP / "configs"


def test_lenet(tmp_path: Path, run_cli: RunCli) -> None:
    """Under Caffe's names, for any batch, in canonical nodes; OpenCV and others read no others."""
    net = snapshot_of(CONFIGS / "examples/mnist/lenet.prototxt", tmp_path / "lenet.caffemodel.h5")
    done = run_cli("export", "lenet.caffemodel.h5", "-o", "lenet.onnx", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["input data batchx1x28x28", "output prob batchx10"]
    assert lines[2].startswith("equal: 8 blobs on 2 batches; largest difference ")
    assert lines[3].startswith("wrote lenet.onnx: 9 nodes of opset ")
    model = onnx.load(tmp_path / "lenet.onnx")
    assert [(node.name, node.op_type) for node in model.graph.node] == [
        ("conv1", "Conv"), ("pool1", "MaxPool"), ("conv2", "Conv"), ("pool2", "MaxPool"), ("ip1/Flatten", "Flatten"),
        ("ip1", "Gemm"), ("relu1", "Relu"), ("ip2", "Gemm"), ("prob", "Softmax"),
    ]  # fmt: skip
    assert [node.output[0] for node in model.graph.node] == [
        "conv1", "pool1", "conv2", "pool2", "ip1/Flatten", "ip1", "ip1_relu1", "ip2", "prob",
    ]  # fmt: skip
    x = torch.rand(5, 1, 28, 28)
    (found,) = onnxruntime.InferenceSession(tmp_path / "lenet.onnx").run(None, {"data": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(data=x)["prob"].detach(), rtol=1e-5, atol=1e-6)


def test_the_other_targets_are_deploy_and_convert(tmp_path: Path, cli: Cli) -> None:
    path = fresh_snapshot(tmp_path)
    code, out, err = cli("export", path, "-o", tmp_path / "use.prototxt")
    assert (code, err) == (0, "") and out.splitlines()[-1].endswith("use.caffemodel.h5: a net for use")
    assert [layer.type for layer in read_net(tmp_path / "use.prototxt").message.layer][-1] == "Softmax"
    code, out, err = cli("export", path, "-o", tmp_path / "b.caffemodel")
    assert (code, err) == (0, "") and "b.caffemodel: a model in binary, 6 blobs of" in out
    for end in ("safetensors", "npz"):
        code, out, err = cli("export", path, "-o", tmp_path / f"b.{end}")
        assert (code, err) == (
            0,
            "",
        ) and out == f"wrote {tmp_path / 'b'}.{end}: a model in {end}, 6 blobs of 1,915 values\n"
    before, after = (load_net(tmp_path / "use.prototxt", one).state_dict() for one in (path, tmp_path / "b.caffemodel"))
    assert before.keys() == after.keys() and all(torch.equal(blob, after[key]) for key, blob in before.items())


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("-o", "net.pb"), "--out is 'net.pb'; expected a name that ends in .onnx, .prototxt, .caffemodel.h5, "),
        (("-o", ".onnx"), "--out is '.onnx'; expected a name that ends in .onnx, "),
        (("-o", "a.caffemodel", "--opset", "18"), "--opset has no meaning for .caffemodel; leave it out"),
        (("-o", "a.prototxt", "--no-fold"), "--no-fold has no meaning for .prototxt; leave it out"),
        (("-o", "a.onnx", "--opset", "12"), "--opset is 12; expected 13 to "),
        (("-o", "a.onnx", "--dynamic", "H,C"), "--dynamic is 'H,C'; 'C' is none of H and W"),
        (("-o", "none/a.onnx"), "cannot write none/a.onnx: "),
    ],
)  # fmt: skip
def test_what_is_refused(
    args: tuple[str, ...], expected: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = fresh_snapshot(tmp_path)
    code, out, err = cli("export", path, *args)
    assert code in (1, 2) and out == "" and said(err).startswith(expected)
    assert list(tmp_path.iterdir()) == [path]


def test_a_net_without_weights(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("export", CONFIGS / "examples/mnist/lenet.prototxt", "-o", tmp_path / "a.onnx")
    assert code == 2 and "its layers have weights; give them by --weights FILE" in said(err)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_without_the_extra(library: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = cli("export", fresh_snapshot(tmp_path), "-o", tmp_path / "a.onnx")
    line = 'an .onnx file needs onnx and onnxruntime; install them with pip install "forcereg[export]"'
    assert (code, said(err)) == (1, line) and not (tmp_path / "a.onnx").exists()
