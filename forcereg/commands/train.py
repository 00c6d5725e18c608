"""forcereg train"""

from __future__ import annotations

import contextlib

import click

from forcereg.commands.options import asked_device, code_options, data_options, device_options, stage_list
from forcereg.errors import UsageError


@click.command(epilog="Example: forcereg train --solver configs/examples/mnist/lenet_force_solver.prototxt")
@click.option("--solver", required=True, metavar="FILE", help="Solver prototxt.")
@click.option("--snapshot", metavar="FILE", help="Continue from this .solverstate.h5.")
@click.option(
    "--weights", metavar="A,B", help="Start from these .caffemodel.h5 files (comma separated), by layer name."
)
@device_options
@click.option("--level", type=int, help="Level of the training net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the training net's state, comma separated.")
@click.option("--log-dir", metavar="DIR", help="Also write TensorBoard curves there.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep only the newest N snapshots.")
@data_options
@click.option("--deterministic", is_flag=True, help="Deterministic operations on the GPU too.")
@click.option("--tf32", is_flag=True, help="Allow TF32 in float32 products on the GPU.")
@code_options
def command(
    solver: str,
    snapshot: str | None,
    weights: str | None,
    gpu: str | None,
    device: str | None,
    level: int | None,
    stage: str,
    log_dir: str | None,
    keep: int | None,
    data_budget: int,
    workers: int,
    deterministic: bool,
    tf32: bool,
    allow_python_layers: bool,
) -> None:
    """Train the net of a solver prototxt.

    SIGINT (Ctrl-C) writes a snapshot and stops, SIGHUP writes one and goes on.
    """
    if snapshot and weights:
        raise UsageError("--snapshot and --weights are both given; a snapshot brings its own weights, use one")
    from forcereg.device import prepare
    from forcereg.schema.text import read_solver
    from forcereg.solver.log import GlogWriter, ProgressBar, on_terminal
    from forcereg.solver.loop import Solver
    from forcereg.solver.signals import handled

    log = GlogWriter()
    file = read_solver(solver)
    if snapshot or weights is not None:
        del file.message.weights[:]
    run = Solver(
        file,
        device=asked_device(gpu, device),
        level=level,
        stages=stage_list(stage),
        budget=data_budget << 20,
        workers=workers,
        keep=keep,
        observers=[log],
        allow_python_layers=allow_python_layers,
    )
    if deterministic or tf32:
        prepare(run.device, tf32, deterministic)
    for path in (weights or "").split(","):
        if path:
            run.load_weights(path.strip())
    with contextlib.ExitStack() as stack:
        if log_dir:
            from forcereg.solver.tensorboard import TensorBoard

            board = TensorBoard(log_dir)
            stack.callback(board.close)
            run.observers.append(board)
            run.measure_force = True
        stack.enter_context(handled(run))
        if snapshot:
            run.restore(snapshot)
        if on_terminal():
            run.observers.append(stack.enter_context(ProgressBar(log)))
        run.solve()
    run.emit("done")
