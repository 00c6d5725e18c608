"""Measuring a net: `forcereg time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forcereg.errors import UsageError
from forcereg.exports.runtimes import for_use
from forcereg.net.load import load_net
from forcereg.net.sparse import Execution
from forcereg.net.timing import Timing, measure
from forcereg.schema.rules import stage_names
from forcereg.study import layer_times
from forcereg.study.bench import TORCH, bench_of
from forcereg.study.sparse import execute
from forcereg.system.arguments import checked
from forcereg.system.device import choose_device
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath


@checked
def time(
    model: StrPath | Any,
    *,
    weights: StrPath | None = None,
    iterations: int = 50,
    phase: str = "TRAIN",
    level: int = 0,
    stage: str | Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    sparse: str | None = None,
    runtime: str = "torch",
    threads: int | None = None,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Timing:
    """How long each layer's forward and backward pass takes, in milliseconds: means of `iterations` behind one.

    `model`: a path, prototxt text or NetParameter; how long a layer takes rarely depends on `weights`. `phase`,
    `level`, `stage`: which layers. `input_shapes`: blob -> shape, of inputs, and of data layers' tops, whose sources
    are then not opened. What no data layer gives is zeros. `threads`: of the CPU, None for as many as torch takes.
    `runtime`: torch; or onnxruntime or openvino: forwards only, of the net for use as `export` writes it (`phase` has
    no say) on random data, each layer as an ONNX model of its own: what the runtime joins is seen only in the whole
    net, `.both`. `sparse` as for `score`; where any convolution leaves out zeros there are forwards only, and the
    result's `.sparse` tells of each its form, its share of weights that aren't 0 and what "auto" measured. On a GPU
    the times are the device's own; `device`, `data_budget` (MiB) and `workers` as for `score`. The result has
    `.layers`, each with `.name`, `.type`, `.forward` and `.backward`, and of whole passes `.forward`, `.backward`,
    `.both`, `.total`. Raises ForceregError for anything wrong in the files.

    >>> timing = forcereg.time("deploy.prototxt", iterations=2, device="cpu")
    >>> [layer.name for layer in timing.layers if layer.type == "Convolution"]
    ['conv1', 'conv2']
    >>> timing.forward > 0 and timing.both == timing.total / 2
    True
    """
    tell = Tell(observer)
    where = choose_device(device if device or runtime == TORCH else "cpu", None, tell.warn)
    bench = bench_of(where, runtime, threads)
    if bench.exports and sparse is not None:
        raise UsageError(
            f"sparse forms are torch's, and {runtime} runs the net as export writes it; use one of the two"
        )
    net = load_net(
        model, weights, "TEST" if bench.exports else phase, level, stage_names(stage), input_shapes=input_shapes,
        device=where, budget=data_budget << 20, workers=workers, allow_python_layers=allow_python_layers,
    )  # fmt: skip
    ways: list[Execution] = []
    if not bench.exports:
        with bench.at_work():
            ways = execute(net, sparse, tell)
    task = "forward" if ways or bench.exports else "forward-backward"
    # in front of the pass that warms up, which isn't among them
    tell.progress(task, 0, iterations)

    def told(index: int, wall: float) -> None:
        tell.progress(task, index + 1, iterations, f"{wall:g} ms")

    if bench.exports:
        net.close()
        used = for_use(net, level, stage_names(stage), allow_python_layers)
        return layer_times.measure(used, bench, iterations, told)
    with bench.at_work():
        return replace(measure(net, iterations, where, told, backward=not ways), sparse=ways)
