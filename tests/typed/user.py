"""A user's script, as mypy --strict is to take it; it isn't run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import forcereg
import forcereg.cost
from forcereg import ForceregError, Solver, UsageError, lowrank
from forcereg.cost import lowrank_speedup


def watch(event: forcereg.Event) -> None:
    if event.kind == "train":
        print(event.iteration, event.loss)


def look(model: Path) -> int:
    found: forcereg.Summary = forcereg.summary(model, input_shapes={"data": (1, 1, 28, 28)})
    drawn: Path = forcereg.draw(model, "net.svg", observer=watch)
    types: list[str] = [one.type for one in forcereg.layer_types()]
    problems: list[str] = forcereg.check("solver.prototxt").errors
    return found.macs + len(types) + len(problems) + len(drawn.parts)


def prepare(folder: Path) -> Path:
    for made in forcereg.convert_mnist(folder, "examples/mnist", force=True):
        print(made.path, made.records, made.shape)
    mean, count = forcereg.convert_mean("train_lmdb", "mean.binaryproto")
    print(float(mean.mean()), count + 1)
    copied: list[Path] = forcereg.copy_configs(".", "examples/mnist")
    return forcereg.new("lenet", folder, force=True).solver if copied else folder


def train(path: Path) -> float:
    solver: Solver = forcereg.train(path, device="cpu", set={"base_lr": 0.01}, stage="deep", observer=watch)
    by_hand = Solver(path, device="cpu", observers=[watch])
    by_hand.step(5)
    scores: forcereg.Score = forcereg.score("net.prototxt", "net.caffemodel", iterations=10, stage=["deep"])
    timing: forcereg.Timing = forcereg.time("net.prototxt", phase="TEST", runtime="onnxruntime", threads=2)
    written: int = forcereg.convert("net.caffemodel", "net.caffemodel.h5").blobs
    forcereg.plot(["a.log", Path("b.log")], "curves.html")
    return scores.mean("accuracy") + timing.forward + written + solver.iter


def cut(snapshot: Path) -> None:
    rules: list[forcereg.MaxError | forcereg.MaxMacs] = [
        forcereg.MaxError(0.05),
        forcereg.MaxMacs(0.5, choose="minmax"),
    ]
    for rule in rules:
        made: forcereg.Decomposition = forcereg.decompose(snapshot, rule=rule, layers=["conv*"])
        paths: dict[str, str] = made.write("low", format="binary")
        forcereg.finetune("solver.prototxt", model=paths["model"], weights=paths["weights"], max_iter=100)
    floor = forcereg.MaxAccuracyDrop(0.01, solver="solver.prototxt", choose="minmax")
    forcereg.decompose(snapshot, rule=floor, layers=lambda layer: layer.type == "Convolution", observer=watch)
    forcereg.ranks(snapshot, error=[0.1, 0.2])
    forcereg.split_groups(snapshot).write("split")
    forcereg.shrink(snapshot).write("small")
    front: forcereg.Frontier = forcereg.frontier([snapshot], solver="solver.prototxt", rule={"half": rules[1]})
    found = forcereg.confusion("net.prototxt", snapshot, labels=["cat", "dog"])
    runs: forcereg.Sweep = forcereg.sweep("solver.prototxt", set={"force_decay": [0, 0.001]}, seeds=2)
    search = {"base_lr": "1e-4:1e-2"}
    tuned: forcereg.Tuned = forcereg.tune("solver.prototxt", goal=forcereg.MaxMacs(0.5), trials=20, search=search)
    print(tuned.best and tuned.best.result.fields)
    used: dict[str, tuple[int, ...]] = forcereg.deploy(snapshot, outputs="fc7").inputs
    print(len(front.points), found.accuracy, [run.failed for run in runs.results], used)


def show(snapshot: Path, net: forcereg.Net) -> list[str]:
    done: forcereg.Exported = forcereg.export(snapshot, "net.onnx", batch=1, verify=False, solver="solver.prototxt")
    forcereg.export(net, Path("net.pt2"))
    inputs: list[str] = [f"{name}: {shape}" for name, shape in done.inputs.items()]
    page: forcereg.Report = forcereg.report_on([snapshot, "train.jsonl"], title="A net", labels=["cat"], passes=0)
    page.write("report.html")
    seen: forcereg.Filters = forcereg.filters([snapshot], layer="conv1", angles=True)
    seen.write("angles.svg")
    falls: forcereg.Sensitivity = forcereg.sensitivity(snapshot, solver="solver.prototxt", error=[0.1])
    curve: forcereg.LrCurve = forcereg.lr_find("solver.prototxt", weights=snapshot, iterations=50, device="cpu")
    curve.write("rates.png")
    print(curve.suggestion and f"{curve.suggestion:.3g}", curve.ended)
    return [*inputs, *page.left, *done.notes, str(falls.runs), str(done.proof and done.proof.difference)]


def factor(weight: Tensor) -> Tensor:
    factors = lowrank.pca(weight, error=0.05)
    print(factors.rank, lowrank_speedup(50, 20, 5, 5, 1, factors.rank), forcereg.cost.dense_macs(50, 20, 5, 5))
    made: Tensor = factors.reconstruct()
    return made + 0.001 * forcereg.force_gradient(weight, "Constant", groups=1)


@forcereg.layer("Halved")
class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@forcereg.layer("Doubled")
class Doubled(forcereg.Layer):
    def __init__(self, spec: Any, shapes: Any) -> None:
        super().__init__(spec, shapes)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def use() -> Tensor:
    try:
        net = forcereg.load_net("deploy.prototxt", "net.caffemodel.h5", device="cpu")
    except (ForceregError, UsageError) as error:
        raise SystemExit(str(error)) from None
    prob: Tensor = net(data=torch.zeros(net.shapes["data"]))["prob"]
    return prob


def any_module(model: nn.Module, images: Tensor) -> nn.Module:
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer: torch.optim.Optimizer = forcereg.nn.Force(plain, model, 1e-3, layers=["layer1.*", nn.Linear], every=2)
    optimizer.step()
    made: forcereg.nn.Decomposition = forcereg.nn.decompose(
        model,
        images,
        rule=forcereg.MaxMacs(0.5),
        layers=lambda name, one: name != "conv1",
        data=[images],
        latency="cpu",
        runtime="openvino",
        threads=1,
    )
    forcereg.nn.rank_clipping(made.model, energy=0.99).tell(optimizer)
    ranks: tuple[int, ...] = tuple(map(len, forcereg.nn.ranks(made.model, images, layers=nn.Conv2d).ranks))
    print(forcereg.nn.macs(made.model, images) + sum(ranks))
    forcereg.nn.save(made.model, Path("small.safetensors"))
    return forcereg.nn.load(lambda: model, "small.safetensors")
