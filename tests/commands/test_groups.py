"""`forcereg split-groups` and `merge-groups`: the net computes what it did, and comes back as it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema.text import parse_net, read_net, to_text
from forcereg.snapshot import read_model, write_model
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import NET, fresh_snapshot
from tests.conftest import TOP, RunCli
from tests.lowrank.test_rewrite import fill, outputs_agree

SNAPSHOT = "snap_iter_7.caffemodel.h5"
ALEXNET = TOP / "configs" / "models" / "alexnet" / "deploy.prototxt"


def loaded(prefix: Path) -> Net:
    """The net of the two files that a command wrote."""
    net = load_net(prefix.with_suffix(".prototxt"))
    fill(net, read_model(f"{prefix}.caffemodel.h5").layers)
    return net


def filled(prefix: Path, text: str) -> Net:
    """A net's text and random weights in two files, without the text in the weights: as Caffe's come."""
    prefix.with_suffix(".prototxt").write_text(text)
    net = load_net(text, seed=1)
    with torch.no_grad():
        for blobs in net.params.values():
            for bias in blobs[1:]:
                bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    blobs = {name: {at: blob.detach().numpy() for at, blob in enumerate(held)} for name, held in net.params.items()}
    write_model(f"{prefix}.caffemodel.h5", blobs)
    return net


def test_alexnet_there_and_back(tmp_path: Path, run_cli: RunCli) -> None:
    """Every layer of the shipped net, small ones in place of the fully connected."""
    text = ALEXNET.read_text().replace("dim: 10", "dim: 1").replace("dim: 227", "dim: 99")
    text = re.sub(r"num_output: (4096|1000)", "num_output: 8", text)
    old = filled(tmp_path / "alexnet", text)
    split = run_cli("split-groups", "alexnet.caffemodel.h5", "--model", "alexnet.prototxt", cwd=tmp_path)
    assert (split.returncode, split.stderr) == (0, "")
    assert split.stdout == ("split conv2, conv4, conv5; wrote alexnet_split.prototxt and alexnet_split.caffemodel.h5\n")
    new = loaded(tmp_path / "alexnet_split")
    assert {"conv2_slice", "conv2_group0", "conv2_group1", "conv2_concat"} <= {layer.name for layer in new.spec.layers}
    assert tuple(new.params["conv4_group1"][0].shape) == (192, 192, 3, 3)
    outputs_agree(old, new)

    merged = run_cli("merge-groups", "alexnet_split.caffemodel.h5", "--out", "again", cwd=tmp_path)
    assert (merged.returncode, merged.stderr) == (0, "")
    assert merged.stdout == "merged into conv2, conv4, conv5; wrote again.prototxt and again.caffemodel.h5\n"
    assert read_net(tmp_path / "again.prototxt").message == parse_net(text).message
    before, after = (read_model(tmp_path / f"{name}.caffemodel.h5").layers for name in ("alexnet", "again"))
    assert before.keys() <= after.keys() and not any(after[name] for name in after.keys() - before.keys())
    for name, blobs in before.items():
        assert all(np.array_equal(after[name][index], values) for index, values in blobs.items()), name


def test_only_layers(tmp_path: Path, cli: Cli) -> None:
    start, end = NET.index('layer { name: "conv2"'), NET.index('layer { name: "ip"')
    third = NET[start:end].replace('"conv2"', '"conv3"').replace('"conv1"', '"conv2"').replace("size: 5", "size: 2")
    two = NET[:end] + third + NET[end:].replace('bottom: "conv2"', 'bottom: "conv3"')
    fresh_snapshot(tmp_path, two)
    code, out, err = cli("split-groups", tmp_path / SNAPSHOT, "--only-layers", "conv3", "--out", tmp_path / "s")
    assert (code, err) == (0, "") and out.startswith("split conv3; wrote ")
    groups = {layer.name: layer.convolution_param.group for layer in read_net(tmp_path / "s.prototxt").message.layer}
    assert groups["conv2"] == 2 and groups["conv3_group0"] == groups["conv3_group1"] == 1


def test_what_is_known_of_the_net_goes_on(tmp_path: Path, cli: Cli) -> None:
    """The net with its comment in the weights file, the shapes of its inputs, seed and whatever else was there."""
    path = fresh_snapshot(tmp_path)
    assert cli("split-groups", path, "--out", tmp_path / "s")[0] == 0
    before, after = read_model(path).attrs, read_model(tmp_path / "s.caffemodel.h5").attrs
    text = (tmp_path / "s.prototxt").read_text()
    assert after == {**before, "forcereg_net": text}
    assert text.startswith("# snap_iter_7.caffemodel.h5: groups of conv2 as parallel layers\n")


def test_every_group_can_be_decomposed_alone(tmp_path: Path, cli: Cli) -> None:
    path = fresh_snapshot(tmp_path)
    assert cli("split-groups", path, "--out", tmp_path / "s")[0] == 0
    split = tmp_path / "s.caffemodel.h5"
    args = ("decompose", "--snapshot", split, "--only-layers", "conv2_group0,conv2_group1", "--ranks", "1,3")
    code, _, err = cli(*args, "--out", tmp_path / "low")
    assert code == 0, err
    shapes = {
        name: blobs[0].shape for name, blobs in read_model(tmp_path / "low.caffemodel.h5").layers.items() if blobs
    }
    assert (shapes["conv2_group0_lowrank"][0], shapes["conv2_group1_lowrank"][0]) == (1, 3)
    # which isn't the same in both any more, so they stay apart
    code, _, err = cli("merge-groups", tmp_path / "low.caffemodel.h5")
    assert code == 1 and "has no equal parallel Convolutions between a Slice and a Concat" in said(err)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param(
            ("split-groups", SNAPSHOT, "--only-layers", "conv2,conv1"),
            2,
            "--only-layers: 'conv1' is no grouped Convolution of <net in snap_iter_7.caffemodel.h5> that can be split; "
            "those are conv2",
            id="not-grouped",
        ),
        pytest.param(("split-groups", SNAPSHOT, "--only-layers", ","), 2, "--only-layers names no layer", id="no-name"),
        pytest.param(("split-groups", "plain.caffemodel.h5"), 1, "has no grouped Convolution", id="no-groups"),
        pytest.param(("merge-groups", SNAPSHOT), 1, "has no equal parallel Convolutions", id="nothing-parallel"),
        pytest.param(("split-groups", "bare.caffemodel.h5"), 1, "holds no net text", id="no-net"),
        pytest.param(("merge-groups", "bare.caffemodel.h5"), 1, "holds no net text", id="no-net-to-merge"),
        pytest.param(("split-groups", "gone.h5"), 1, "gone.h5", id="no-file"),
        pytest.param(
            ("split-groups", SNAPSHOT, "--out", "snap_iter_7"),
            2,
            f"would overwrite {SNAPSHOT}",
            id="overwrites-weights",
        ),
        pytest.param(
            ("split-groups", "bare.caffemodel.h5", "--model", "net.prototxt", "--out", "net"),
            2,
            "--out net would overwrite net.prototxt; choose another prefix",
            id="own-net",
        ),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = fresh_snapshot(tmp_path)
    (tmp_path / "net.prototxt").write_text(to_text(parse_net(NET).message))
    model = read_model(path)
    write_model(tmp_path / "bare.caffemodel.h5", model.layers)
    write_model(tmp_path / "plain.caffemodel.h5", {}, attrs={"forcereg_net": NET.replace("group: 2", "")})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found, out, err = cli(*args)
    assert (found, out) == (code, "") and message in said(err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
