"""How long layers and nets take forwards on a device, several side by side: what ranks by measured times rest on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

import forcereg.registry as registry
from forcereg.cost import Shapes
from forcereg.errors import ForceregError
from forcereg.exports.runtimes import for_use
from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.merge import merge
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole
from forcereg.lowrank.rewrite import Weights, split
from forcereg.lowrank.timed import Timed, by_times
from forcereg.net.load import load_net, net_file, net_shapes, net_spec
from forcereg.net.module import Net
from forcereg.net.timing import Stopwatch
from forcereg.schema import NetParameter
from forcereg.schema.rules import included
from forcereg.schema.text import NetFile
from forcereg.snapshot import ModelFile, load_into
from forcereg.study.accounting import Accounts
from forcereg.study.bench import Bench
from forcereg.system.capture import WARM_UP, Recorder, recorder_for
from forcereg.system.events import Tell

T = TypeVar("T")
Run = Callable[[], Any]
LEAST, MOST = 5, 100
"""Rounds."""
SECONDS = 4.0
"""Time for the rounds of what is compared."""
SAMPLE = 2.0
"""Milliseconds that a run takes in a round, in several calls if need be."""


def interleaved(
    runs: Sequence[Run], device: torch.device, seconds: float = SECONDS, rounds: int | None = None
) -> list[list[float]]:
    """Milliseconds of a call of each run, by rounds in which all take turns: what disturbs one disturbs all.

    So many `rounds`, or for None as many as `seconds` allow, at least LEAST, at most MOST.
    """
    watch = Stopwatch(device)
    # as nets are used: autograd keeps nothing
    with torch.inference_mode():
        # before anything is timed: a recorded run takes another number of calls
        runs = at_one_launch(runs, device)
        # each its own: a short run is called often in a round, so that the clock's grain doesn't count
        calls = [_calls(run, watch) for run in runs]
        started = time.perf_counter()
        # not counted: it tells how long a round takes
        _round(runs, calls, watch)
        fitting = min(max(LEAST, int(seconds / (time.perf_counter() - started))), MOST)
        measured = [_round(runs, calls, watch) for _ in range(rounds or fitting)]
    return [list(times) for times in zip(*measured, strict=True)]


def at_one_launch(runs: Sequence[Run], device: torch.device) -> list[Run]:
    """The runs as CUDA graphs, so that what is measured is the GPU's work, not the host's launches; the same elsewhere.

    A run that can't be recorded stays as it is.
    """
    recorder = recorder_for(device)
    return list(runs) if recorder is None else [_recorded(run, recorder) for run in runs]


def _recorded(run: Run, recorder: Recorder) -> Run:
    net = getattr(run, "func", None)
    # what some layers do on the host a graph would leave out
    if isinstance(net, Net) and not all(module is None or module.capturable for _, module in net.built):
        return run
    for _ in range(WARM_UP):
        # kernels are chosen and workspaces taken before the recording, in which neither may happen
        recorder.run(run)
    try:
        replay, tops = recorder.record(run)
    except (RuntimeError, ForceregError):
        return run
    return partial(_replayed, replay, tops)


def _replayed(replay: Run, tops: T) -> T:
    """The blobs, which live as long as this call can be made."""
    replay()
    return tops


def _calls(run: Run, watch: Stopwatch) -> int:
    """How many calls take SAMPLE, found behind a warm-up."""
    for _ in range(WARM_UP):
        run()
    watch.wait()
    # a thousand calls at most, also where a clock shows none of the first
    return ceil(SAMPLE / max(_time(run, 1, watch), SAMPLE / 1000))


def _round(runs: Sequence[Run], calls: Sequence[int], watch: Stopwatch) -> list[float]:
    return [_time(run, count, watch) for run, count in zip(runs, calls, strict=True)]


def _time(run: Run, calls: int, watch: Stopwatch) -> float:
    start = watch.mark()
    for _ in range(calls):
        run()
    end = watch.mark()
    watch.wait()
    return watch.between(start, end) / calls


# -- layers


class LayerTimer:
    """Measures layers of a net and chains in their place: a `Timer` for `lowrank.timed.by_times`.

    Each runs as a small net of its own on inputs of the shape that the whole net hands it, in torch also of the memory
    layout; other runtimes are given its ONNX model. `batch` takes the place of axis 0, None keeps it. Raises
    ForceregError where the net's shapes are unknown.
    """

    def __init__(
        self,
        prepared: Prepared,
        bench: Bench,
        batch: int | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        if prepared.shapes is None:
            why = "data that isn't here (--input-shape), or layers that need --allow-python-layers or --import"
            raise ForceregError(f"{prepared.file.name}: blob shapes are unknown, so no layer can be measured: {why}")
        self._prepared, self._shapes, self._bench = prepared, prepared.shapes, bench
        self._batch, self._tell = batch, tell
        self._merged = merge(prepared.file.message, prepared.weights, list(prepared.chains.values()))[0]
        self._fed = {top for layer in prepared.file.message.layer if not layer.bottom for top in layer.top}

    def __call__(self, one: Candidate, choices: Sequence[Choice]) -> list[list[float]]:
        """Milliseconds by choice and round."""
        ranks = ", ".join(rank_text(choice) for choice in choices if not isinstance(choice, Whole))
        self._tell(f"measuring {one.name} as it is and at rank {ranks}")
        with self._bench.at_work():
            return interleaved([self.run(one, choice) for choice in choices], self._bench.device)

    def run(self, one: Candidate, choice: Choice) -> Run:
        """A call of the layer as it is now, or of its chain at a rank."""
        layers = self._layers(one, choice)
        shapes = {name: self._shape(one, name) for name in layers[0].bottom}
        device = self._bench.device
        net = layer_net(layers, shapes, device)
        inputs = {name: torch.rand(shape, device=device) for name, shape in shapes.items()}
        for name, value in inputs.items():
            if device.type == "cpu" and value.dim() == 4 and name not in self._fed:
                inputs[name] = value.contiguous(memory_format=torch.channels_last)  # as convolutions hand it on
        return self._bench.run(net, inputs)

    def _layers(self, one: Candidate, choice: Choice) -> list[Any]:
        chain = self._prepared.chains.get(one.name)
        if isinstance(choice, Whole) and chain is not None:
            return [self._deployed(self._prepared.file.message, name) for name in chain.parts]
        # merged: a new chain would stand in for all of an earlier one
        layer = self._deployed(self._merged, one.name)
        return [layer] if isinstance(choice, Whole) else split(layer, one.ladder.outline(choice))

    def _deployed(self, net: Any, name: str) -> Any:
        """The layer of that name; of several for different phases that of the net that costs are of."""
        return next(layer for layer in net.layer if layer.name == name and included(layer, self._prepared.state))

    def _shape(self, one: Candidate, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise ForceregError(f"{one.where}: the shape of its bottom '{name}' is unknown; it can't be measured")
        return resized(self._shapes[name], self._batch)


def layer_net(layers: Sequence[Any], shapes: Shapes, device: torch.device) -> Net:
    """A net of LayerParameters in a row, fed with blobs of those shapes, with random weights."""
    message = NetParameter(name="measured")
    for name, shape in shapes.items():
        fed = message.layer.add(name=f"{name} (input)", type="Input", top=[name])
        fed.input_param.shape.add(dim=shape)
    for layer in layers:
        own = message.layer.add()
        # without rules, names of shared blobs and weights: it runs alone
        own.CopyFrom(layer)
        for field in ("include", "exclude", "phase", "param", "loss_weight", "blobs"):
            own.ClearField(field)
    net = load_net(message, device=device, seed=0)
    with torch.no_grad():
        for blob in net.parameters():
            blob.uniform_(-0.1, 0.1)  # whatever the file's fillers; never denormal
    return net


def resized(shape: Sequence[int], batch: int | None) -> tuple[int, ...]:
    """The shape with axis 0 of another size, if one is given."""
    return tuple(shape) if batch is None or not shape else (batch, *shape[1:])


def timed_choices(
    prepared: Prepared, bench: Bench, batch: int | None, criterion: Criterion, budget: bool, tell: Tell
) -> Timed:
    """The criterion's ranks or faster ones near them, by what the layers take on a bench. Raises ForceregError.

    `budget`: the criterion shares one out.
    """
    return by_times(prepared.candidates, criterion, LayerTimer(prepared, bench, batch, tell.note), budget)


# -- whole nets


def before_and_after(
    nets: Sequence[tuple[NetFile, Weights]], accounts: Accounts, bench: Bench, batch: int | None, tell: Tell
) -> list[float] | None:
    """Milliseconds of a whole net as it is and as it was made; None where it can't run by itself, which is told."""
    try:
        return net_latencies(nets, bench, batch, accounts.fed, accounts.root, accounts.allow_python_layers)
    except ForceregError as error:
        tell.note(f"the whole net isn't measured: {error}")
        return None


def net_latencies(
    nets: Sequence[tuple[Any, Weights | None]],
    bench: Bench,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    root: Path | None = None,
    allow_python_layers: bool = False,
) -> list[float]:
    """Milliseconds of each net's forward pass in its test phase, medians of rounds in which all take turns.

    nets: NetParameter, NetFile, path or text, each with its weights (None: the fillers'). `batch`: the size of axis 0
    of all that the net is fed, None for its own; reading data isn't measured. A bench whose runtime isn't torch runs
    the nets as `forcereg export` writes them. `input_shapes` and `root` as `load.net_shapes`. Raises ForceregError.
    """
    runs = []
    for model, weights in nets:
        file = net_file(model)
        shapes = net_shapes(file, input_shapes, root, allow_python_layers)
        runs.append(net_run(file, weights, fed_shapes(file, shapes or {}, batch), bench, allow_python_layers))
    with bench.at_work():
        return [median(times) for times in interleaved(runs, bench.device)]


def fed_shapes(file: NetFile, shapes: Shapes, batch: int | None) -> dict[str, tuple[int, ...]]:
    """Shapes of what the test phase's Input and data layers give, with axis 0 of another size."""
    layers = [spec for spec in net_spec(file, "TEST").layers if spec.type == "Input" or spec.type in registry.source]
    return {top: resized(shapes[top], batch) for spec in layers for top in spec.tops if top in shapes}


def net_run(
    file: NetFile, weights: Weights | None, given: Shapes, bench: Bench, allow_python_layers: bool = False
) -> Run:
    """A call of a whole net in its test phase on random data; another runtime than torch has the net for use."""
    net = filled_net(file, weights, given, allow_python_layers, bench.device)
    if bench.exports:
        net = for_use(net, allow_python_layers=allow_python_layers)
    # below 1, so that as a label it is class 0
    return bench.run(net, {name: torch.rand(net.shapes[name], device=bench.device) for name in net.inputs})


def filled_net(
    file: NetFile,
    weights: Weights | None,
    given: Shapes,
    allow_python_layers: bool = False,
    device: str | torch.device = "cpu",
) -> Net:
    """A net in its test phase with these weights, to be fed by hand: its inputs and data layers have `given` shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told where the net is trained
        net = load_net(file, input_shapes=given, device=device, seed=0, allow_python_layers=allow_python_layers)
    if weights is not None:
        layers = {name: dict(blobs) for name, blobs in weights.items()}
        load_into(net.params, ModelFile(Path("<weights>"), layers, {}), net.shared)
    return net
