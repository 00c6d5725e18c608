"""forcereg time"""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import (
    asked_devices,
    code_options,
    data_options,
    device_options,
    given_shapes,
    net_options,
    runtime_options,
    sparse_option,
)

if TYPE_CHECKING:
    from forcereg.net.timing import Timing
    from forcereg.solver.log import GlogWriter
    from forcereg.system.events import Event


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg time --model configs/examples/mnist/lenet.prototxt --iterations 20 --gpu 0",
)
@click.option("--model", required=True, metavar="FILE", type=click.Path(), help="Net prototxt.")
@click.option("--weights", metavar="FILE", type=click.Path(),
              help="Model to load first; how long a layer takes rarely depends on it.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(min=1), default=50, show_default=True, help="Passes to measure.")
@partial(net_options, phase="TRAIN")
@runtime_options
@sparse_option
@device_options
@data_options
@code_options
def command(**options: Any) -> None:
    """Measure a net: each layer's forward and backward pass, in milliseconds, after one pass to warm up.

    By another runtime than torch: forward passes of the net for use, as `forcereg export` writes it, and of each layer
    alone. On a GPU the times are the device's own. What no data layer supplies is zeros.
    """
    from forcereg.solver.log import GlogWriter
    from forcereg.workflows.time import time

    given = SimpleNamespace(**options)
    log = GlogWriter(file="time.py")

    def told(event: Event) -> None:
        if event.kind != "progress":
            log(event)
        elif event.done:
            log.line(f"Iteration: {event.done} {event.task} time: {event.text}.")
        else:
            log.line("*** Benchmark begins ***")
            log.line(f"Testing for {event.most} iterations.")

    timing = time(
        given.model,
        weights=given.weights,
        iterations=given.iterations,
        phase=given.phase or "TRAIN",
        level=given.level,
        stage=given.stage,
        input_shapes=given_shapes(given.input_shape),
        sparse=given.sparse,
        runtime=given.runtime,
        threads=given.threads,
        device=asked_devices(given.gpu, given.device)[0],
        data_budget=given.data_budget,
        workers=given.workers,
        allow_python_layers=given.allow_python_layers,
        observer=told,
    )
    _report(timing, log)
    # in a pipe standard output stays empty, as Caffe's does
    if sys.stdout.isatty():
        _show(timing)


def _report(timing: Timing, log: GlogWriter) -> None:
    """Caffe's lines; of another runtime, or sparse convolutions, those that there are forwards."""
    if timing.runtime != "torch":
        log.line(f"Average time per layer, each alone in {timing.runtime}: ")
        for layer in timing.layers:
            log.line(f"{layer.name:>10}\tforward: {layer.forward:g} ms.")
        log.line(f"Average Forward pass of the whole net in {timing.runtime}: {timing.both:g} ms.")
        log.line("*** Benchmark ends ***")
        return
    for one in timing.sparse:
        log.line(f"{one.layer}: {one.text}")
    log.line("Average time per layer: ")
    for layer in timing.layers:
        log.line(f"{layer.name:>10}\tforward: {layer.forward:g} ms.")
        if not timing.sparse:
            log.line(f"{layer.name:>10}\tbackward: {layer.backward:g} ms.")
    log.line(f"Average Forward pass: {timing.forward:g} ms.")
    if not timing.sparse:
        log.line(f"Average Backward pass: {timing.backward:g} ms.")
        log.line(f"Average Forward-Backward: {timing.both:g} ms.")
    log.line(f"Total Time: {timing.total:g} ms.")
    log.line("*** Benchmark ends ***")


def _show(timing: Timing) -> None:
    """A table, for people."""
    from forcereg.report.table import Table, numeric

    if timing.runtime != "torch":
        table = Table("layer", "type", *numeric(f"{timing.runtime} forward ms"))
        for layer in timing.layers:
            table.row(layer.name, layer.type, f"{layer.forward:.3f}")
        table.section()
        table.row("whole net", "", f"{timing.both:.3f}")
        table.show()
        return
    if timing.sparse:
        _show_sparse(timing)
        return
    table = Table("layer", "type", *numeric("forward ms", "backward ms", "share"))
    whole = timing.forward + timing.backward
    for layer in timing.layers:
        share = f"{(layer.forward + layer.backward) / whole:.1%}" if whole else ""
        table.row(layer.name, layer.type, f"{layer.forward:.3f}", f"{layer.backward:.3f}", share)
    table.section()
    table.row("total", "", f"{timing.forward:.3f}", f"{timing.backward:.3f}", "")
    table.show()


def _show_sparse(timing: Timing) -> None:
    """Layers' forward passes, with each convolution's form, and what "auto" measured beside dense."""
    from forcereg.report.table import Table, numeric

    ways = {one.layer: one for one in timing.sparse}
    forms = list(dict.fromkeys(form for one in timing.sparse for form in one.ms))
    title = "Forward milliseconds, in the net" + (" and of each form alone" if forms else "")
    table = Table("layer", "type", "form", *numeric("not 0", "in the net", *forms), title=title)
    for layer in timing.layers:
        one = ways.get(layer.name)
        said = (one.form, f"{one.share:.1%}") if one else ("", "")
        alone = (f"{one.ms[form]:.3f}" if one and form in one.ms else "" for form in forms)
        table.row(layer.name, layer.type, said[0], said[1], f"{layer.forward:.3f}", *alone)
    table.section()
    table.row("total", "", "", "", f"{timing.forward:.3f}", *("" for _ in forms))
    table.show()
