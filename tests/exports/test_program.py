"""`.pt2`: programs that compute what the net does, where forcereg isn't."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import forcereg
from forcereg.errors import ForceregError
from forcereg.exports.dims import batch_axes, sizes_of
from forcereg.exports.graph import Varying
from forcereg.exports.program import Fixed, image, record
from forcereg.exports.pt2 import blob_names
from forcereg.layers.recording import recording
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.registry import factorizer
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import fresh_snapshot
from tests.conftest import TOP, RunCli
from tests.exports.nets import NORMED, snapshot_of
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import close, load_layer
from tests.small_nets import inputs, ip

CONFIGS = TOP / "configs"
ALONE = """
import sys
sys.modules["forcereg"] = None
import torch
texts = {"net.prototxt": "", "forcereg.json": ""}
program = torch.export.load(sys.argv[1], extra_files=texts).module()
torch.manual_seed(3)
print(program(torch.rand(5, 1, 28, 28))["prob"].tolist())
print(repr(texts))
"""


def loaded(path: Path) -> Callable[..., dict[str, Tensor]]:
    program = torch.export.load(path).module()

    def run(*given: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return program(*given)  # type: ignore[no-any-return]

    return run


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_lenet_runs_where_forcereg_is_not(tmp_path: Path, run_cli: RunCli) -> None:
    net = snapshot_of(CONFIGS / "examples/mnist/lenet.prototxt", tmp_path / "lenet.caffemodel.h5")
    done = run_cli("export", "lenet.caffemodel.h5", "-o", "lenet.pt2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["input data batchx1x28x28", "output prob batchx10"]
    assert lines[2].startswith("equal: 8 blobs on 2 batches; largest difference ")
    assert lines[3].startswith("wrote lenet.pt2: a program of 10 operators")
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "lenet.pt2"], cwd="/", capture_output=True, text=True, check=True
    )
    prob, texts = alone.stdout.splitlines()
    torch.manual_seed(3)
    expected = net(data=torch.rand(5, 1, 28, 28))["prob"].detach()
    torch.testing.assert_close(torch.tensor(json.loads(prob)), expected, rtol=1e-4, atol=1e-5)
    found = eval(texts)
    about = json.loads(found["forcereg.json"])
    assert found["net.prototxt"].startswith('name: "LeNet"')
    assert about["inputs"] == {"data": ["batch", 1, 28, 28]} and about["outputs"] == {"prob": ["batch", 10]}
    assert about["forcereg_version"] == forcereg.__version__ and len(about["weights_sha256"]) == 64
    with zipfile.ZipFile(tmp_path / "lenet.pt2") as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    assert str(TOP).encode() not in held and str(tmp_path).encode() not in held  # no paths of this machine


@pytest.mark.parametrize(
    ("name", "fold"),
    [("examples/cifar10/cifar10_full", True), *(("examples/cifar10/cifar10_resnet20", fold) for fold in (True, False))],
)
def test_shipped_nets(name: str, fold: bool, tmp_path: Path) -> None:
    net = load_net(CONFIGS / f"{name}.prototxt", input_shapes={"data": (1, 3, 32, 32)}, seed=1)
    for spec, module in net.built:
        if spec.type == "BatchNorm" and module is not None:
            module.weight_blob("variance").fill_(1)
            module.weight_blob("factor").fill_(1)
    forcereg.export(net, tmp_path / "a.pt2", fold=fold, verify=False)
    x = torch.rand(3, 3, 32, 32)
    run = loaded(tmp_path / "a.pt2")
    same(run(x), {"prob": net(data=x)["prob"]})
    same(run(x[:1]), {"prob": net(data=x[:1])["prob"]})
    kinds = {str(node.target) for node in torch.export.load(tmp_path / "a.pt2").graph.nodes}
    assert ("aten.batch_norm.default" in kinds) == ("resnet" in name and not fold)


@pytest.mark.parametrize("kind", sorted(factorizer))
def test_decompositions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = forcereg.decompose(fresh_snapshot(tmp_path), rule=forcereg.MaxError(0.3), method=kind)
    paths = made.write("low")
    forcereg.export(paths["weights"], "low.pt2", verify=False)
    net = load_net(forcereg.deploy(paths["weights"]).net, paths["weights"])
    x = torch.rand(3, *net.shapes["data"][1:])
    same(loaded(tmp_path / "low.pt2")(x), net(data=x))


@pytest.mark.parametrize("kind", sorted(factorizer))
def test_folded_and_decomposed_with_groups(kind: str, long_form: bool, tmp_path: Path) -> None:
    """`--fold-bn`; in the long form the program runs alone, blob by blob."""
    if not (long_form or kind in ("pca", "vh")):
        pytest.skip("one of all methods; --long")
    snapshot_of(NORMED, tmp_path / "normed.caffemodel.h5")
    made = forcereg.decompose(tmp_path / "normed.caffemodel.h5", rule=forcereg.Ranks([3, 2]), method=kind,
                              fold_bn=True, even_if_dearer=True)  # fmt: skip
    paths = made.write(tmp_path / "low")
    done = forcereg.export(paths["weights"], tmp_path / "low.pt2", verify=long_form)
    assert (done.proof is not None) == long_form
    net = load_net(paths["model"], paths["weights"])
    assert "BatchNorm" not in {spec.type for spec in net.spec.layers}
    assert max(getattr(module, "group", 1) for _, module in net.built) > 1
    x = torch.rand(3, 3, 10, 10)
    same(loaded(tmp_path / "low.pt2")(x), net(data=x))


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_large_nets(name: str, long_form: bool, tmp_path: Path) -> None:
    if not long_form:
        pytest.skip("a large net; --long")
    snapshot_of(CONFIGS / f"models/{name}/deploy.prototxt", tmp_path / "net.caffemodel.h5")
    done = forcereg.export(tmp_path / "net.caffemodel.h5", tmp_path / "net.pt2")
    assert done.proof is not None and done.proof.difference <= 1e-4 * done.proof.magnitude
    assert done.inputs["data"][0] == "batch" and done.outputs == {"prob": ("batch", 1000)}


def of_new_types(cases: list[Any], all_of_them: bool) -> list[Case]:
    """A case for every type of layer."""
    seen: set[str] = set()
    chosen = []
    for case in (param.values[0] for param in cases):
        types = {line.split('"')[1] for line in case.attrs["prototxt"].replace("'", '"').split("type:")[1:]}
        if all_of_them or not types <= seen:
            chosen.append(case)
            seen |= types
    return chosen


def test_every_type_of_layer_as_recorded_from_caffe(long_form: bool, tmp_path: Path) -> None:
    """Run as it was recorded and saved; in phase TEST, with the net beside that is compared with Caffe's numbers."""
    tried = 0
    for case in of_new_types(golden_cases("layers"), long_form):
        net, given, _ = load_layer(case)
        net.eval()
        if not net.spec.outputs or not net.inputs:
            continue
        try:
            axes = batch_axes(net)
            sizes_of(net, axes)
            program = record(net, axes)
        except (Varying, Fixed):
            program = record(net, {})
        (tmp_path / "a.pt2").write_bytes(image(program, {}))
        found = loaded(tmp_path / "a.pt2")(*(given[name] for name in net.inputs))
        for name, value in net(given).items():
            close(found[name], value.detach().numpy(), f"{case.id}: {name}")
        tried += 1
    assert tried > 40


# -- nets of all kinds


TWO = (
    inputs(**{"left side": (2, 3), "right/é": (2, 3)})
    + "\n".join(ip(f"p {name[0]}", name, f"y{name}", 4, 'param { name: "w" } param { name: "b" }')
                for name in ("left side", "right/é"))
    + 'layer { name: "sum/ü" type: "Eltwise" bottom: "yleft side" bottom: "yright/é" top: "out put" }'
    + 'layer { name: "relu" type: "ReLU" bottom: "out put" top: "out put" }'
)  # fmt: skip


def test_names_inputs_and_shared_blobs(tmp_path: Path) -> None:
    net = load_net(TWO, seed=1)
    done = forcereg.export(net, tmp_path / "übung 1.pt2", verify=False)
    assert len({*blob_names(net, net.spec.outputs).values()}) == 4
    given = {name: torch.rand(3, 3) for name in net.inputs}
    same(loaded(tmp_path / "übung 1.pt2")(*given.values()), net(given))
    assert done.inputs == {name: ("batch", 3) for name in net.inputs} and done.outputs == {"out put": ("batch", 4)}


LSTM = (
    inputs(x=(3, 2, 4), cont=(3, 2))
    + 'layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 5 '
    'weight_filler { type: "uniform" min: -1 max: 1 } } }'
)
RESHAPE = inputs(x=(2, 6)) + 'layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 2 dim: 3 dim: -1 } } }'  # noqa: E501 # fmt: skip


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (LSTM, "the batch is fixed: torch.export can't leave it open"),
        (inputs(x=(2, 3), y=(1, 3)) + 'layer { name: "c" type: "Concat" bottom: "x" bottom: "y" top: "z" '
         "concat_param { axis: 0 } }", "the batch is fixed: with another one the net has inputs of several sizes"),
        (RESHAPE, "the batch is fixed: torch.export can't leave it open (Constraints violated (batch))"),
    ],
    ids=["lstm", "sizes", "reshape"],
)  # fmt: skip
def test_a_batch_that_cannot_stay_open(net: str, says: str, tmp_path: Path) -> None:
    made = load_net(net, seed=1)
    done = forcereg.export(made, tmp_path / "a.pt2", verify=False)
    assert done.notes[-1].startswith(says) and done.inputs == {name: made.shapes[name] for name in made.inputs}
    given = [torch.rand(made.shapes[name]).round() for name in made.inputs]
    made.reset_state()
    run = loaded(tmp_path / "a.pt2")
    for _ in range(2):  # hidden state goes on
        same(run(*given), made(dict(zip(made.inputs, given, strict=True))))


def test_sizes_that_nobody_knows_before_have_names(tmp_path: Path) -> None:
    net = load_net(
        inputs(x=(4, 3), keep=(4, 1))
        + 'layer { name: "f" type: "Filter" bottom: "x" bottom: "keep" top: "rows" } '
        + 'layer { name: "t" type: "Tile" bottom: "x" top: "twice" tile_param { axis: 0 tiles: 2 } }'
    )
    done = forcereg.export(net, tmp_path / "a.pt2", verify=False)
    assert done.outputs == {"rows": ("rows_0", 3), "twice": ("twice_0", 3)}
    assert done.inputs == {"x": ("batch", 3), "keep": ("batch", 1)}
    x = torch.rand(5, 3)
    found = loaded(tmp_path / "a.pt2")(x, torch.tensor([[1.0], [0], [0], [2], [0]]))
    assert torch.equal(found["rows"], x[[0, 3]]) and found["twice"].shape == (10, 3)


def test_a_batch_that_is_asked_for(tmp_path: Path, cli: Cli) -> None:
    path = fresh_snapshot(tmp_path)
    code, out, err = cli("export", path, "-o", tmp_path / "a.pt2", "--batch", "3", "--no-verify")
    assert (code, err) == (0, "") and out.splitlines()[0].startswith("input data 3x")
    with pytest.raises(Exception, match=r"(?i)shape|size"):
        loaded(tmp_path / "a.pt2")(torch.rand(2, *load_net_shape(path)))


def load_net_shape(path: Path) -> list[int]:
    return list(forcereg.deploy(path).inputs["data"][1:])


# -- what can't be written


class Deciding(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Lying(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if recording() else x


class Foreign(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.strangers.double(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def _types() -> None:
    library = torch.library.Library("strangers", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
    torch.library.register_fake("strangers::double", lambda x: torch.empty_like(x), lib=library)
    _types.library = library  # type: ignore[attr-defined]
    for kind in (Deciding, Lying, Foreign):
        forcereg.layer(f"Export{kind.__name__}")(kind)


def strange(kind: str) -> Net:
    return load_net(
        inputs(x=(2, 3)) + ip("ip", "x", "y", 4)
        + f'layer {{ name: "odd one" type: "Export{kind}" bottom: "y" top: "z" }}'
        'layer { name: "relu" type: "ReLU" bottom: "z" top: "z" }',
        seed=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "Deciding",
            r"layer 'odd one': torch.export can't record it \(.*data-dependent.*\); end in blobs in",
        ),
        ("Foreign", "layer 'odd one': runs strangers.double.default, which torch has only where it was registered"),
        (
            "Lying",
            r"the file's 'z_odd one' \(layer 'odd one'\) differs from ours by 1, .* it is the first, ",
        ),
    ],
)
def test_what_no_program_can_be(kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=says) as caught:
        forcereg.export(strange(kind), tmp_path / "a.pt2")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_python_layers(tmp_path: Path, user_module: Callable[[str, str], Path]) -> None:
    user_module("twice_layer", "import caffe\nclass Twice(caffe.Layer):\n    def setup(self, b, t): pass\n"
                "    def reshape(self, b, t): t[0].reshape(*b[0].data.shape)\n"
                "    def forward(self, b, t): t[0].data[...] = 2 * b[0].data\n")  # fmt: skip
    net = load_net(inputs(x=(2, 3)) + 'layer { name: "p" type: "Python" bottom: "x" top: "y" '
                   'python_param { module: "twice_layer" layer: "Twice" } }', allow_python_layers=True)  # fmt: skip
    with pytest.raises(ForceregError, match="layer 'p': type Python runs code that no program can hold; end in blobs"):
        forcereg.export(net, tmp_path / "a.pt2", allow_python_layers=True)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("-o", "a.pt2", "--opset", "18"), "--opset has no meaning for .pt2; leave it out"),
        (("-o", "a.pt2", "--outputs", "conv9"), "the TEST net has no blob 'conv9'"),
        (("-o", "none/a.pt2"), "cannot write none/a.pt2: there is no folder"),
    ],
)
def test_what_is_refused(
    args: tuple[str, ...], expected: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = fresh_snapshot(tmp_path)
    code, out, err = cli("export", path, *args)
    assert code in (1, 2) and out == "" and expected in said(err)
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forcereg.exports import pt2

    (tmp_path / "ends.py").write_text("import sys\nprint('first', file=sys.stderr)\nsys.exit('there is no torch')\n")
    monkeypatch.setattr(pt2, "SCRIPT", tmp_path / "ends.py")
    with pytest.raises(
        ForceregError, match=r"the program doesn't run in a process without forcereg: there is no torch"
    ):
        forcereg.export(load_net(TWO, seed=1), tmp_path / "a.pt2")
    assert np.array_equal([path.name for path in tmp_path.iterdir()], ["ends.py"])
