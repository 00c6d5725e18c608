"""The shipped prototxt files: they parse, hang together, and say what the published nets are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forcereg.net.load import load_net, net_file, net_spec
from forcereg.net.module import Net
from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.text import read_net, read_solver
from forcereg.system.shipped import configs_dir, shipped_configs

SHIPPED = {file.path.as_posix(): file for file in shipped_configs()}
NETS = [name for name, file in SHIPPED.items() if file.kind == "net"]
SOLVERS = [name for name, file in SHIPPED.items() if file.kind == "solver"]
DEPLOYS = {
    "examples/mnist/lenet.prototxt": "examples/mnist/lenet_train_test.prototxt",
    "examples/cifar10/cifar10_full.prototxt": "examples/cifar10/cifar10_full_train_test.prototxt",
    "examples/cifar10/cifar10_resnet20.prototxt": "examples/cifar10/cifar10_resnet20_train_test.prototxt",
    "models/alexnet/deploy.prototxt": "models/alexnet/train_val.prototxt",
    "models/caffenet/deploy.prototxt": "models/caffenet/train_val.prototxt",
    "models/googlenet/deploy.prototxt": "models/googlenet/train_val.prototxt",
    "models/resnet50/deploy.prototxt": "models/resnet50/train_val.prototxt",
    "models/vgg16/deploy.prototxt": "models/vgg16/train_val.prototxt",
}
# The weights that the force acts on, by net.
FORCED = {
    "examples/mnist/lenet_train_test_force.prototxt": ["conv1", "conv2"],
    "examples/cifar10/cifar10_full_train_test_force.prototxt": ["conv1", "conv2", "conv3"],
    "examples/cifar10/cifar10_resnet20_train_test_force.prototxt": [
        f"res_grp{group}_{block}_conv{i}" for group in (1, 2, 3) for block in (1, 2, 3) for i in (1, 2)
    ],
    "models/alexnet/train_val.prototxt": [f"conv{number}" for number in range(1, 6)],
    "models/googlenet/train_val.prototxt": ["conv1/7x7_s2", "conv2/3x3_reduce", "conv2/3x3"]
    + [
        f"inception_{block}/{part}"
        for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for part in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
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
    assert (len(NETS), len(SOLVERS)) == (19, 15)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_says_what_it_is(name: str) -> None:
    opening = {"ranks": '{\n  "//": "%s",\n'}.get(SHIPPED[name].kind, "# %s\n")
    assert (configs_dir() / name).read_text().startswith(opening % SHIPPED[name].description)
    assert SHIPPED[name].description.endswith(".")


def test_what_commands_write_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.prototxt").write_text("# A net.\nname: 'n'\n")
    for made in ("net_iter_10_lowrank", "net_deploy"):
        (tmp_path / f"{made}.prototxt").write_text("# Made by a run.\n")
    monkeypatch.setattr("forcereg.system.shipped.configs_dir", lambda: tmp_path)
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
def test_solver_has_the_force_that_its_name_says(name: str) -> None:
    message = solver(name)
    assert (message.force_decay > 0) == ("force" in name)
    assert message.net in FORCED or "force" not in name


@pytest.mark.parametrize("name", [name for name in NETS if name not in DEPLOYS])
def test_force_acts_on_the_weights_of(name: str) -> None:
    found = [layer.name for layer in net(name).layer if any(param.force_mult for param in layer.param)]
    assert found == FORCED.get(name, [])
    for layer in net(name).layer:
        assert not any(param.force_mult for param in layer.param[1:])


@pytest.mark.parametrize("name", [name for name in FORCED if "force" in name])
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


# -- as nets

# (channels, height, width) of what a net sees, and its number of classes.
FACTS = {
    "examples/mnist/lenet": ((1, 28, 28), 10),
    "examples/cifar10/cifar10_full": ((3, 32, 32), 10),
    "examples/cifar10/cifar10_resnet20": ((3, 32, 32), 10),
    "models/alexnet/": ((3, 227, 227), 1000),
    "models/caffenet/": ((3, 227, 227), 1000),
    "models/googlenet/": ((3, 224, 224), 1000),
    "models/resnet50/": ((3, 224, 224), 1000),
    "models/vgg16/": ((3, 224, 224), 1000),
}
LEARNED = {
    "examples/mnist/lenet.prototxt": 431_080,
    "examples/cifar10/cifar10_full.prototxt": 89_578,
    "models/alexnet/deploy.prototxt": 60_965_224,
    "models/caffenet/deploy.prototxt": 60_965_224,
    "models/googlenet/deploy.prototxt": 6_998_552,
    "models/resnet50/deploy.prototxt": 25_557_096,
    "models/vgg16/deploy.prototxt": 138_357_544,
}


def facts(name: str) -> tuple[tuple[int, ...], int]:
    return next(value for prefix, value in FACTS.items() if name.startswith(prefix))


def shape_only(name: str, phase: str, batch: int = 2) -> Net:
    """The net without memory for its weights, and without its data."""
    image, _ = facts(name)
    with torch.device("meta"):
        spec = net_spec(net_file(configs_dir() / name), phase)
        return Net(spec, input_shapes={"data": (batch, *image), "label": (batch,)})


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", NETS)
def test_net_builds(name: str, phase: str) -> None:
    built = shape_only(name, phase)
    image, classes = facts(name)
    assert not built.spec.warnings and built.training == (phase == "TRAIN")
    assert built.shapes["data"] == (2, *image)
    outputs = built.spec.outputs
    if name in DEPLOYS:
        assert outputs == ("prob",) and built.shapes["prob"] == (2, classes)
    else:
        assert built.inputs == ("data", "label") and built.loss_weights
        assert any("accuracy" in output or "top-1" in output for output in outputs) or phase == "TRAIN"
        assert set(built.loss_weights) <= set(outputs)


@pytest.mark.parametrize("name", [name for name in NETS if name not in DEPLOYS])
def test_force_multipliers_as_built(name: str) -> None:
    found = {(p.layer, p.index): p.force_mult for p in shape_only(name, "TRAIN").learnable if p.force_mult}
    assert found == {(layer, 0): 1 for layer in FORCED.get(name, [])}


@pytest.mark.parametrize(("name", "count"), LEARNED.items(), ids=LEARNED)
def test_parameter_count(name: str, count: int) -> None:
    assert sum(p.numel() for p in shape_only(name, "TEST").parameters()) == count


@pytest.mark.parametrize("name", DEPLOYS)
def test_deploy_net_runs(name: str) -> None:
    image, classes = facts(name)
    built = load_net(configs_dir() / name, seed=0)
    data = torch.rand(1, *image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        built.train()(data=data)  # without statistics each BatchNorm would divide by sqrt(eps) alone
        out = built.eval()(data=data)
    assert list(out) == ["prob"] and out["prob"].shape == (1, classes)
    assert out["prob"].sum().item() == pytest.approx(1, abs=1e-5)
    assert out["prob"].min() > 0


@pytest.mark.parametrize("name", [name for name in NETS if name not in DEPLOYS and "models" not in name])
def test_small_net_takes_a_gradient_everywhere(name: str) -> None:
    image, classes = facts(name)
    shapes = {"data": (4, *image), "label": (4,)}
    built = load_net(configs_dir() / name, phase="TRAIN", seed=0, input_shapes=shapes)
    data = torch.rand(shapes["data"], generator=torch.Generator().manual_seed(0))
    loss, _ = built.forward_loss({"data": data, "label": torch.arange(4.0)})
    assert 0 < loss.item() < 3 * torch.tensor(float(classes)).log()
    loss.backward()
    dead = [p.layer for p in built.learnable if p.lr_mult and not p.blob.grad.isfinite().all()]
    assert not dead
    assert all(p.blob.grad.any() for p in built.learnable if p.lr_mult and p.index == 0 and "scale" not in p.layer)


def test_resnet_shapes_and_scales() -> None:
    built = load_net(
        configs_dir() / "examples/cifar10/cifar10_resnet20_train_test_force.prototxt",
        phase="TRAIN",
        seed=0,
        input_shapes={"data": (2, 3, 32, 32), "label": (2,)},
    )
    kinds = [spec.type for spec in built.spec.layers]
    weights = {spec.name: built.params[spec.name] for spec in built.spec.layers if spec.type == "Convolution"}
    assert sum(blobs[0].shape[2:] == (3, 3) for blobs in weights.values()) == 19
    assert kinds.count("InnerProduct") == 1
    scales = [built.params[spec.name] for spec in built.spec.layers if spec.type == "Scale"]
    assert scales and all(bool((blobs[0] == 1).all()) and not blobs[1].any() for blobs in scales)
