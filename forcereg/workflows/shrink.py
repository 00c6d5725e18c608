"""`forcereg shrink`: a net without the filters, channels, neurons and branches that add nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forcereg.cost import Cost
from forcereg.errors import ForceregError
from forcereg.lowrank.rewrite import Weights
from forcereg.net.made import write_net
from forcereg.net.read import ReadNet, read_net_of
from forcereg.net.shrink import DIFFERENT, Shrunk
from forcereg.net.shrink import shrink as engine
from forcereg.net.summary import Row, cost_of, summarize
from forcereg.report.latency import Latency
from forcereg.report.lowrank import net_report
from forcereg.schema.text import NetFile, net_from_message
from forcereg.study.accounting import Accounts, accounts
from forcereg.study.bench import Bench
from forcereg.study.latency import before_and_after, fed_shapes, filled_net
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath
from forcereg.workflows.decompose import measuring


@dataclass(frozen=True)
class ShrunkNet:
    """A smaller net that computes what the old one did, in the test phase.

    net: NetParameter. weights: layer name -> position of the blob in its layer -> values. report: plain data, what
    `forcereg shrink --json` prints. layers: those that changed, with the shapes of their first blob and their cost for
    one image before and after (`after` is None for one that is gone); net: the whole net's cost; gone: all layers that
    aren't there any more; whole: layers that can't be cut, and why; remarks: settings that were left out; difference:
    of the outputs for random data in float64, relative to the largest, None where the net can't run here; latency, if
    it was measured.

    >>> import torch
    >>> net = forcereg.load_net("deploy.prototxt", "net_iter_20.caffemodel.h5")
    >>> with torch.no_grad():
    ...     for blob in net.params["conv1"]:
    ...         _ = blob[3:].zero_()
    >>> made = forcereg.shrink(net)
    >>> made, made.weights["conv2"][0].shape
    (ShrunkNet(conv1 8x1x3x3 -> 3x1x3x3, conv2 16x8x3x3 -> 16x3x3x3), (16, 3, 3, 3))
    """

    net: Any = field(repr=False)
    weights: Weights = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    read: ReadNet = field(repr=False)
    warn: Callable[[str], None] = field(default=warnings.warn, repr=False)

    def __repr__(self) -> str:
        return f"ShrunkNet({', '.join(map(said, self.report['layers'])) or ', '.join(self.report['gone'])})"

    @checked
    def write(self, prefix: StrPath, format: str | None = None) -> dict[str, str]:
        """Writes PREFIX.prototxt and the weights, PREFIX.caffemodel or PREFIX.caffemodel.h5; the paths of both.

        format: "binary" or "hdf5", None for the snapshot's; a net in memory is written as HDF5. Raises UsageError where
        a file that was read would be overwritten, ForceregError if the system refuses.
        """
        done = [*map(said, self.report["layers"]), *(f"{name} gone" for name in self.report["gone"])]
        heading = f"shrunk by forcereg: {', '.join(done)}"
        return write_net(prefix, self.net, self.weights, self.read, heading, form=format, warn=self.warn)


@checked
def shrink(
    snapshot: StrPath | Any,
    *,
    model: StrPath | None = None,
    latency: str | torch.device | None = None,
    batch: int | None = None,
    runtime: str = "torch",
    threads: int | None = None,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> ShrunkNet:
    """Cut out of a net what adds nothing to its outputs, in the test phase: an ordinary, smaller net.

    Filters, channels and neurons that are zero or constant, where who reads them can take the constant into a bias;
    those that nobody reads; branches of sums that are constant; kernels down to the window that isn't zero. Outputs
    keep their names and sizes. snapshot: a .caffemodel, also as .h5, its solver state, or a net in memory as for
    `decompose`. model: the net's prototxt, None for the net that the snapshot holds. latency: "cpu" or "cuda", where
    the nets are measured before and after, with `batch` images, None for the net's, by `runtime` with so many
    `threads`. allow_python_layers: run code that the net names. input_shapes: blob -> shape, for data that isn't here.
    observer: gets notes and warnings. Nothing is written; `ShrunkNet.write` does that. Raises UsageError for what
    doesn't go together, ForceregError for files that can't be read or don't fit, for a net whose shapes are unknown,
    and for one with nothing to cut.

    >>> net = forcereg.load_net("deploy.prototxt", "net_iter_20.caffemodel.h5")
    >>> import torch
    >>> with torch.no_grad():
    ...     _ = net.params["ip"][0][:, : 12 * 16].zero_()  # the columns that read 12 of conv2's 16 channels, 4x4 each
    >>> made = forcereg.shrink(net)
    >>> [(layer["name"], layer["before"], layer["after"]) for layer in made.report["layers"]]
    [('conv2', [16, 8, 3, 3], [4, 8, 3, 3]), ('ip', [3, 256], [3, 64])]
    >>> made.report["net"]["macs_before"], made.report["net"]["macs_after"]
    (21792, 7392)
    >>> made.write("small")
    {'model': 'small.prototxt', 'weights': 'small.caffemodel.h5'}
    """
    tell = Tell(observer)
    clock = measuring(latency, batch, runtime, threads)
    read = read_net_of(snapshot, model, input_shapes, tell.warn)
    found = accounts(read.file, input_shapes, read.model.input_shapes, read.root, allow_python_layers)
    views = [view for view in (found.view, found.train) if view is not None]
    if not views:
        raise ForceregError(
            f"{read.file.name}: blob shapes are unknown, so nothing can be cut: data that isn't here (--input-shape), "
            "or layers that need --allow-python-layers or --import"
        )
    done = engine(read.file, read.model.layers, [(view.state, view.net) for view in views])
    if not done.changes and not done.gone:
        whole = "".join(f"; {name}: {reason}" for name, reason in done.whole.items())
        raise ForceregError(f"{read.file.name}: no channel, neuron or branch of zeros, so nothing to cut{whole}")
    made = net_from_message(done.net, read.file.name)
    difference = compared([(read.file, read.model.layers), (made, done.weights)], found, tell)
    measured = None if clock is None else latencies(read, made, done, found, clock, batch, tell)
    report = account(done, made, found)
    report |= {"difference": difference} | ({} if measured is None else {"latency": measured.report()})
    return ShrunkNet(done.net, done.weights, report, read, tell.warn)


def said(layer: Mapping[str, Any]) -> str:
    """A layer's shapes before and after."""
    before, after = ("x".join(map(str, layer[key] or ())) for key in ("before", "after"))
    return f"{layer['name']} {before} -> {after or 'gone'}"


# -- report


def account(done: Shrunk, made: NetFile, found: Accounts) -> dict[str, Any]:
    """What was done as plain data."""
    assert found.view is not None
    views = {"net": found.view} | ({"train_net": found.train} if found.train else {})
    nets = {key: (one.net, one.like(made, found.root, found.allow_python_layers)) for key, one in views.items()}
    costs = {key: net_report(*map(cost_of, pair)) for key, pair in nets.items()}
    before, after = (
        # the TEST net's where a layer is in both
        {row.name: row for pair in reversed(nets.values()) for row in summarize(pair[at]).rows}
        for at in (0, 1)
    )
    layers = [
        {
            "name": one.name,
            "type": one.type,
            "before": list(one.before),
            "after": None if one.after is None else list(one.after),
            **net_report(cost(before.get(one.name)), cost(after.get(one.name))),
        }
        for one in done.changes
    ]
    train = costs.get("train_net")
    return {
        "layers": layers,
        "net": costs["net"],
        "train_net": None if train == costs["net"] else train,
        "phase": found.phase,
        "gone": list(done.gone),
        "whole": done.whole,
        "remarks": list(done.remarks),
    }


def cost(row: Row | None) -> Cost:
    """Of one layer; nothing of one that isn't there."""
    return Cost(0, 0) if row is None else Cost(row.macs, row.params)


def compared(nets: Sequence[tuple[NetFile, Weights]], found: Accounts, tell: Tell) -> float | None:
    """The largest difference of the nets' outputs, relative to the largest output (or 1); None where they can't run."""
    try:
        old, new = (outputs(file, weights, found) for file, weights in nets)
    except ForceregError as error:
        tell.note(f"outputs aren't compared: {error}")
        return None
    differences = [
        float((values - new[name]).abs().max()) / max(1.0, float(values.abs().max()))
        for name, values in old.items()
        if values.numel()
    ]
    difference = max(differences, default=0.0)
    if not difference <= DIFFERENT:
        tell.warn(f"the outputs differ by {difference:.1e} of the largest; compare the nets on your data")
    return difference


def outputs(file: NetFile, weights: Weights, found: Accounts) -> dict[str, Tensor]:
    """Of one item of random data, the same for every net that is fed alike, in float64."""
    given = fed_shapes(file, found.fed or {}, 1)
    net = filled_net(file, weights, given, found.allow_python_layers).double()
    chance = torch.Generator().manual_seed(0)
    # below 1, so that as a label it is class 0
    fed = {name: torch.rand(net.shapes[name], generator=chance, dtype=torch.float64) for name in sorted(net.inputs)}
    with torch.no_grad():
        return net(fed)


def latencies(
    read: ReadNet, made: NetFile, done: Shrunk, found: Accounts, clock: Bench, batch: int | None, tell: Tell
) -> Latency | None:
    """The whole net's times before and after; None where it can't run by itself, which is told."""
    nets = [(read.file, read.model.layers), (made, done.weights)]
    times = before_and_after(nets, found, clock, batch, tell)
    return None if times is None else clock.found(batch, (), times)
