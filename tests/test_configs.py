"""The shipped prototxt files: they parse, hang together, and say what the published nets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.text import read_net, read_solver
from forcereg.shipped import configs_dir, shipped_configs

SHIPPED = {file.path.as_posix(): file for file in shipped_configs()}
NETS = [name for name, file in SHIPPED.items() if file.kind == "net"]
SOLVERS = [name for name, file in SHIPPED.items() if file.kind == "solver"]
DEPLOYS = {
    "examples/mnist/lenet.prototxt": "examples/mnist/lenet_train_test.prototxt",
    "examples/cifar10/cifar10_full.prototxt": "examples/cifar10/cifar10_full_train_test.prototxt",
    "examples/cifar10/cifar10_resnet20.prototxt": "examples/cifar10/cifar10_resnet20_train_test.prototxt",
    "models/alexnet/deploy.prototxt": "models/alexnet/train_val.prototxt",
    "models/googlenet/deploy.prototxt": "models/googlenet/train_val.prototxt",
}
# The weights that the force acts on, by net.
FORCED = {
    "examples/mnist/lenet_train_test_force.prototxt": ["conv1", "conv2"],
    "examples/cifar10/cifar10_full_train_test_force.prototxt": ["conv1", "conv2", "conv3"],
    "examples/cifar10/cifar10_resnet20_train_test_force.prototxt": [
        f"res_grp{group}_{block}_conv{i}" for group in (1, 2, 3) for block in (1, 2, 3) for i in (1, 2)
    ],
}


def net(name: str) -> NetParameter:
    return read_net(configs_dir() / name).message


def solver(name: str) -> SolverParameter:
    return read_solver(configs_dir() / name).message


def weighted(message: NetParameter) -> dict[str, object]:
    """The layers with weights, without what only training needs."""
    kinds = ("Convolution", "InnerProduct", "BatchNorm", "Scale")
    found = {}
    for layer in message.layer:
        if layer.type in kinds:
            bare = type(layer)()
            bare.CopyFrom(layer)
            del bare.param[:]
            found[layer.name] = bare
    return found


def test_counts() -> None:
    assert (len(NETS), len(SOLVERS)) == (13, 8)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_says_what_it_is(name: str) -> None:
    assert (configs_dir() / name).read_text().startswith(f"# {SHIPPED[name].description}\n")
    assert SHIPPED[name].description.endswith(".")


def test_what_decompose_writes_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.prototxt").write_text("# A net.\nname: 'n'\n")
    (tmp_path / "net_iter_10_lowrank.prototxt").write_text("# Made by a run.\n")
    monkeypatch.setattr("forcereg.shipped.configs_dir", lambda: tmp_path)
    assert [file.description for file in shipped_configs()] == ["A net."]


@pytest.mark.parametrize("name", NETS)
def test_net_parses(name: str) -> None:
    message = net(name)
    assert message.name and len(message.layer) > 8
    is_deploy = message.layer[0].type == "Input"
    assert is_deploy == (name in DEPLOYS)
    assert message.layer[-1].type == "Softmax" if is_deploy else message.layer[0].type == "Data"


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_names_a_shipped_net_and_its_own_prefix(name: str) -> None:
    message = solver(name)
    assert message.net in NETS and message.net not in DEPLOYS
    assert Path(message.snapshot_prefix).parent == Path(name).parent
    prefixes = [solver(other).snapshot_prefix for other in SOLVERS]
    assert prefixes.count(message.snapshot_prefix) == 1
    # Caffe's own writer fails on layer names with a slash, and binary snapshots hold no net text.
    assert message.snapshot_format == SolverParameter.HDF5


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_has_force_exactly_where_its_net_has(name: str) -> None:
    message = solver(name)
    assert (message.force_decay > 0) == (message.net in FORCED) == ("force" in name)


@pytest.mark.parametrize("name", [name for name in NETS if name not in DEPLOYS])
def test_force_acts_on_the_weights_of(name: str) -> None:
    found = [layer.name for layer in net(name).layer if any(param.force_mult for param in layer.param)]
    assert found == FORCED.get(name, [])
    for layer in net(name).layer:
        assert not any(param.force_mult for param in layer.param[1:])


@pytest.mark.parametrize("name", FORCED)
def test_force_nets_differ_in_the_force_only(name: str) -> None:
    plain, forced = net(name.replace("_force", "")), net(name)
    for message in (plain, forced):
        for layer in message.layer:
            for param in layer.param:
                param.ClearField("force_mult")
            if len(layer.param) == 1 and layer.param[0] == type(layer.param[0])(lr_mult=1):
                del layer.param[:]  # what an absent entry means
    assert plain == forced


@pytest.mark.parametrize(("deploy", "trained"), DEPLOYS.items(), ids=DEPLOYS)
def test_deploy_net_has_the_trained_layers(deploy: str, trained: str) -> None:
    wanted, known = weighted(net(deploy)), weighted(net(trained))
    assert wanted == {name: layer for name, layer in known.items() if not name.startswith(("loss1/", "loss2/"))}


def test_readme_solver() -> None:
    message = solver("examples/mnist/lenet_force_solver.prototxt")
    assert message.net == "examples/mnist/lenet_train_test_force.prototxt"
    assert (message.base_lr, message.momentum, message.weight_decay) == pytest.approx((0.01, 0.9, 0.0005))
    assert list(message.stepvalue) == [5000, 7000, 8000, 9000, 9500]
    assert (message.force_type, message.force_decay) == ("Constant", pytest.approx(0.001))
