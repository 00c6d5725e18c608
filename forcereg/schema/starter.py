"""Starting points: a solver and nets with force set up, made from the shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from forcereg.schema.text import read_net, read_solver, to_text
from forcereg.system.shipped import configs_dir

CIFAR = "examples/cifar10/cifar10"


@dataclass(frozen=True)
class Starter:
    """`files`: path -> text, the solver's first; `data`: the command that makes what they read, run in their folder."""

    files: dict[str, str]
    data: str


def lenet() -> Starter:
    """LeNet on MNIST."""
    names = ("lenet_force_solver", "lenet_train_test_force", "lenet")
    return _shipped([f"examples/mnist/{name}.prototxt" for name in names], "forcereg data mnist IDX_DIR examples/mnist")


def cifar10_full() -> Starter:
    """The three-convolution net on CIFAR-10."""
    names = ("_full_force_solver", "_full_train_test_force", "_full")
    return _shipped([f"{CIFAR}{name}.prototxt" for name in names], "forcereg data cifar10 SRC examples/cifar10")


def resnet(n: int) -> Starter:
    """A CIFAR-10 ResNet of 6n + 2 layers: three groups of n blocks."""
    name = f"{CIFAR}_resnet{6 * n + 2}"
    nets = {"_train_test_force": f"ResNet-{6 * n + 2} on CIFAR-10 with force on its blocks.", "": "The same for use."}
    solver = read_solver(configs_dir() / f"{CIFAR}_resnet20_force_solver.prototxt").message
    solver.net, solver.snapshot_prefix = f"{name}_train_test_force.prototxt", f"{name}_force"
    files = {f"{name}_force_solver.prototxt": f"# ResNet-{6 * n + 2} on CIFAR-10 with force.\n{to_text(solver)}"}
    for ending, comment in nets.items():
        net = _resized(read_net(configs_dir() / f"{CIFAR}_resnet20{ending}.prototxt").message, n)
        files[f"{name}{ending}.prototxt"] = f"# {comment}\n{to_text(net)}"
    return Starter(files, "forcereg data cifar10 SRC examples/cifar10")


def alexnet() -> Starter:
    """AlexNet on ImageNet, force on every convolution."""
    folder = "models/alexnet"
    solver = read_solver(configs_dir() / f"{folder}/solver.prototxt").message
    solver.snapshot_prefix = f"{folder}/alexnet_force"
    solver.force_type, solver.force_decay = "Constant", 1e-5
    text = f"# AlexNet on ImageNet with force regularization.\n{to_text(solver)}"
    data = "forcereg data images LIST examples/imagenet/ilsvrc12_train_lmdb ..."
    nets = _shipped([f"{folder}/train_val.prototxt", f"{folder}/deploy.prototxt"], data)
    return Starter({f"{folder}/force_solver.prototxt": text, **nets.files}, data)


STARTERS: dict[str, Callable[..., Starter]] = {
    "lenet": lenet,
    "cifar10_full": cifar10_full,
    "resnet": resnet,
    "alexnet": alexnet,
}
"""Name -> its starter; resnet takes n."""


def _shipped(paths: list[str], data: str) -> Starter:
    return Starter({path: (configs_dir() / path).read_text(encoding="utf-8") for path in paths}, data)


def _resized(net: Any, n: int) -> Any:
    """A ResNet with 3 blocks a group as one with n: block 1 of each group, then block 2 again and again."""
    layers = list(net.layer)
    starts = [i for i, layer in enumerate(layers) if layer.name.endswith("_1_conv1")]
    ends = [*starts[1:], next(i for i, layer in enumerate(layers) if layer.name == "global_pool")]
    resized = type(net)(name=net.name.replace("20", str(6 * n + 2)))
    resized.layer.extend(layers[: starts[0]])
    last = resized.layer[-1].top[0]
    for group, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        first, second = f"res_grp{group}_1_", f"res_grp{group}_2_"
        blocks = layers[start:end]
        before = blocks[0].bottom[0]
        for block in range(1, n + 1):
            kind = first if block == 1 else second
            source = before if block == 1 else f"{first}sum"
            for layer in (layer for layer in blocks if layer.name.startswith(kind)):
                resized.layer.append(_renamed(layer, {source: last}, kind, f"res_grp{group}_{block}_"))
            last = f"res_grp{group}_{block}_sum"
    for layer in layers[ends[-1] :]:
        resized.layer.append(_renamed(layer, {layers[ends[-1]].bottom[0]: last}, "", ""))
    return resized


def _renamed(layer: Any, blobs: dict[str, str], old: str, new: str) -> Any:
    layer = deepcopy(layer)
    layer.name = layer.name.replace(old, new, 1) if old else layer.name
    for field in (layer.bottom, layer.top):
        field[:] = [blobs.get(blob, blob.replace(old, new, 1) if old else blob) for blob in field]
    return layer
