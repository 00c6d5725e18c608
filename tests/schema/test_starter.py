"""`forcereg new`: starters that train, of any depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.net.load import shape_net
from forcereg.net.summary import summarize
from forcereg.schema.starter import STARTERS, Starter
from forcereg.schema.text import parse_net, parse_solver, read_net
from forcereg.system.shipped import configs_dir
from tests.conftest import RunCli


def made(kind: str, n: int) -> Starter:
    return STARTERS[kind](n) if kind == "resnet" else STARTERS[kind]()


@pytest.mark.parametrize(
    ("kind", "n"), [(kind, 3) for kind in STARTERS] + [("resnet", 1), ("resnet", 2), ("resnet", 7)]
)
def test_solver_net_and_deploy_net_belong_together(kind: str, n: int) -> None:
    (solver_path, solver_text), (net_path, net_text), (_, deploy_text) = made(kind, n).files.items()
    solver = parse_solver(solver_text).message
    assert solver.net == net_path and Path(solver.snapshot_prefix).parent == Path(solver_path).parent
    assert solver.force_decay > 0 and solver.force_type == "Constant"
    image = {"lenet": (1, 28, 28), "alexnet": (3, 227, 227)}.get(kind, (3, 32, 32))
    shapes = {"data": (2, *image), "label": (2,)}
    net = shape_net(net_text, "TRAIN", input_shapes=shapes)
    forced = {one.layer for one in net.learnable if one.force_mult}
    assert forced and forced <= {spec.name for spec in net.spec.layers if spec.type == "Convolution"}
    assert summarize(net).params == summarize(shape_net(deploy_text)).params


@pytest.mark.parametrize("name", ["", "_train_test_force"])
def test_three_blocks_give_the_shipped_net(name: str) -> None:
    path = f"examples/cifar10/cifar10_resnet20{name}.prototxt"
    assert parse_net(made("resnet", 3).files[path]).message == read_net(configs_dir() / path).message


@pytest.mark.parametrize("n", [1, 2, 5])
def test_depth(n: int) -> None:
    text = made("resnet", n).files[f"examples/cifar10/cifar10_resnet{6 * n + 2}_train_test_force.prototxt"]
    message = parse_net(text).message
    kinds = [layer.type for layer in message.layer if "downsampling" not in layer.name]
    assert kinds.count("Convolution") + kinds.count("InnerProduct") == 6 * n + 2
    assert sum(any(p.force_mult for p in layer.param) for layer in message.layer) == 6 * n


def test_alexnet_forces_every_convolution() -> None:
    message = parse_net(made("alexnet", 3).files["models/alexnet/train_val.prototxt"]).message
    for layer in message.layer:
        assert [p.force_mult for p in layer.param][:1] == (
            [1.0] if layer.type == "Convolution" else [0.0][: len(layer.param)]
        )


def test_the_command(tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("new", "resnet", "--n", "1", "there", cwd=tmp_path)
    assert done.returncode == 0 and "next, in there: forcereg data cifar10" in done.stdout
    written = sorted(path.name for path in tmp_path.rglob("*.prototxt"))
    assert written == [f"cifar10_resnet8{name}.prototxt" for name in ("", "_force_solver", "_train_test_force")]
    solver = tmp_path / "there/examples/cifar10/cifar10_resnet8_force_solver.prototxt"
    assert run_cli("new", "resnet", "--n", "1", "there", cwd=tmp_path).returncode == 0
    solver.write_text("mine")
    refused = run_cli("new", "resnet", "--n", "1", "there", cwd=tmp_path)
    assert refused.returncode == 1 and "exists and differs; give --force" in refused.stderr
    assert solver.read_text() == "mine"
    assert run_cli("new", "resnet", "--n", "1", "there", "--force", cwd=tmp_path).returncode == 0
    assert solver.read_text().startswith("# ResNet-8 on CIFAR-10")


def test_a_folder_in_the_way(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "examples/mnist/lenet.prototxt").mkdir(parents=True)
    refused = run_cli("new", "lenet", cwd=tmp_path)
    assert refused.returncode == 1 and "lenet.prototxt: is a folder; choose another one" in refused.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "Choose from: lenet, cifar10_full, resnet, alexnet"),
        (("lenet", "--n", "3"), "--n is for resnet"),
        (("vgg",), "'vgg' is not one of"),
        (("resnet", "--n", "0"), "0 is not in"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], says: str, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("new", *args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert not list(tmp_path.iterdir())
