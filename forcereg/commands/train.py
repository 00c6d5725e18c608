"""forcereg train"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.gflags import CaffeCommand, arguments
from forcereg.commands.options import asked_devices, code_options, data_options, device_options, stage_list
from forcereg.errors import UsageError, printable

if TYPE_CHECKING:
    from forcereg.schema.text import SolverFile
    from forcereg.solver.distributed import Group
    from forcereg.solver.loop import Solver
    from forcereg.system.events import Observer

EFFECT = click.Choice(["stop", "snapshot", "none"])


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg train --solver configs/examples/mnist/lenet_force_solver.prototxt --seed 1",
)
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--snapshot", metavar="FILE", type=click.Path(), help="Continue from this solver state.")
@click.option("--resume", type=click.Choice(["auto"]),
              help="Continue from the newest complete snapshot of the prefix; start fresh if none.")  # fmt: skip
@click.option("--weights", metavar="A,B", type=click.Path(),
              help="Start from these models (comma separated), by layer name.")  # fmt: skip
@device_options
@click.option("--nproc", type=click.IntRange(min=1), metavar="N",
              help="Train by N processes here, each on a part of the data, on the CPU or a GPU each.")  # fmt: skip
@click.option("--global-batch", is_flag=True,
              help="Divide the net's batch over the processes instead of giving it to each.")  # fmt: skip
@click.option("--level", type=int, help="Level of the training net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the training net's state, comma separated.")
@click.option("--sigint-effect", type=EFFECT, default="stop", show_default=True, help="What SIGINT (Ctrl-C) does.")
@click.option("--sighup-effect", type=EFFECT, default="snapshot", show_default=True, help="What SIGHUP does.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
              help="Set a field of the solver, as in base_lr=0.001 or stepvalue=[5000,7000]; repeatable.")  # fmt: skip
@click.option("--max-iter", type=click.IntRange(0, 2**31 - 1), metavar="N", help="The same as --set max_iter=N.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The same as --set random_seed=N.")
@click.option("--rank-clipping", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
              help="Reduce the ranks of a decomposed net at each test interval: each X_lowrank -> X_linear keeps this "
                   "share of its weight's squared norm, as in 0.99.")  # fmt: skip
@click.option("--clip-until", type=click.IntRange(min=1), metavar="ITER",
              help="With --rank-clipping: reduce no ranks from this iteration on.")  # fmt: skip
@click.option("--log-json", metavar="FILE", type=click.Path(),
              help="Also write every event there, one JSON object a line.")  # fmt: skip
@click.option("--log-dir", metavar="DIR", type=click.Path(), help="Also write TensorBoard curves there.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep only the newest N snapshots.")
@data_options
@click.option("--amp", type=click.Choice(["bf16", "fp16"]),
              help="Train in mixed precision; weights, losses, updates and tests stay float32.")  # fmt: skip
@click.option("--deterministic", is_flag=True, help="Deterministic operations on the GPU too.")
@click.option("--tf32", is_flag=True, help="Allow TF32 in float32 products on the GPU.")
@click.option("--no-cuda-graph", is_flag=True,
              help="Launch each operation on the GPU by itself, not whole iterations as CUDA graphs.")  # fmt: skip
@code_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train the net of a solver prototxt.

    SIGINT (Ctrl-C) and SIGTERM write a snapshot and stop, SIGHUP writes one and goes on. With several GPUs (or --nproc,
    or under torchrun) each trains on a part of the data.
    """
    run(ctx, options)


def warn_of_chains(solver: Solver) -> None:
    """That a force acts on decomposed layers, unless their ranks are to sink."""
    from forcereg.solver.chains import force_on_chains

    if solver.clipping is None and (text := force_on_chains(solver.net, solver.param)):
        solver.warn(text)


def run(
    ctx: click.Context,
    options: Mapping[str, Any],
    arrange: Callable[[SolverFile], SolverFile] = lambda file: file,
    judge: Callable[[Solver, Collection[str]], None] = lambda solver, fresh: None,
    remark: Callable[[Solver], None] = warn_of_chains,
) -> None:
    """Trains as the options of `command` say; `arrange` changes the solver once they have. Raises ForceregError.

    `judge` is shown the layers that --weights leave as initialised, and may raise; `remark` the solver made, to say
    what there is to say of it.
    """
    given = SimpleNamespace(**options, arrange=arrange, judge=judge, remark=remark)
    starts = [name for name in ("snapshot", "resume", "weights") if getattr(given, name)]
    if "snapshot" in starts and len(starts) > 1:
        why = "a snapshot brings its own weights" if "weights" in starts else "both say where to go on"
        raise UsageError(f"--snapshot and --{starts[1]} are both given; {why}, use one")
    if given.clip_until is not None and given.rank_clipping is None:
        raise UsageError("--clip-until is about --rank-clipping, which isn't given; add it, as in --rank-clipping 0.99")
    devices = asked_devices(given.gpu, given.device)
    from forcereg.solver.launch import effects, held, in_group, launch

    count = given.nproc or len(devices)
    if count != len(devices) > 1:
        raise UsageError(f"--nproc is {count}, --gpu names {len(devices)} GPUs; name one for each process")
    meant = effects(given.sigint_effect, given.sighup_effect)
    if count > 1 and not in_group():
        launch(count, [str(ctx.info_name), *arguments(ctx)], meant)
        return
    with held([number for number, effect in meant.items() if effect != "stop"]):  # it must not end a run that starts
        _train(given, devices)


def _train(given: SimpleNamespace, devices: list[str | None]) -> None:
    file = _file(given)  # what is wrong in it is told before torch is loaded
    from forcereg.solver.distributed import join
    from forcereg.solver.launch import restarted
    from forcereg.solver.log import GlogWriter, ProgressBar
    from forcereg.solver.signals import handled
    from forcereg.system.terminal import on_terminal

    log = GlogWriter()
    group = join(devices, file.message, given.global_batch)
    if group.rank:
        warnings.simplefilter("ignore")  # rank 0 says the same
    with contextlib.ExitStack() as stack:
        stack.enter_context(group.together())
        given.restarted = any(group.gather(restarted()))  # of several machines not all may know
        solver = _solver(given, file, group, [log, *_json_log(given, group, stack)])
        if given.log_dir and group.rank == 0:
            from forcereg.solver.tensorboard import TensorBoard

            board = TensorBoard(given.log_dir)
            stack.callback(board.close)
            solver.observers.append(board)
        solver.measure_force = bool(given.log_dir or given.log_json)
        stack.enter_context(_told(solver))
        stack.enter_context(handled(solver, given.sigint_effect, given.sighup_effect))
        _start(given, solver)
        if on_terminal() and group.rank == 0:
            solver.observers.append(stack.enter_context(ProgressBar(log)))
        solver.solve()
    if group.rank == 0:
        log.line("Optimization Done.")  # once more, as Caffe's command does behind its solver


def _json_log(given: SimpleNamespace, group: Group, stack: contextlib.ExitStack) -> list[Observer]:
    from forcereg.solver.jsonlog import JsonLog

    if not given.log_json or group.rank:
        return []
    log = JsonLog(given.log_json)
    stack.callback(log.close)
    return [log]


def _file(given: SimpleNamespace) -> SolverFile:
    """The solver with what the options change in it."""
    from forcereg.schema.settings import with_settings
    from forcereg.schema.text import read_solver

    named = {"max_iter": given.max_iter, "random_seed": given.seed}
    settings = [*given.settings, *(f"{name}={value}" for name, value in named.items() if value is not None)]
    return given.arrange(with_settings(read_solver(given.solver), settings))


def _solver(given: SimpleNamespace, file: SolverFile, group: Group, observers: list[Observer]) -> Solver:
    from forcereg.solver.clipping import RankClipping
    from forcereg.solver.loop import Solver
    from forcereg.system.device import prepare

    given.own_weights = list(file.message.weights)
    if given.snapshot or given.resume or given.restarted or given.weights is not None:
        del file.message.weights[:]
    solver = Solver(
        file,
        device=group.device,
        level=given.level,
        stages=stage_list(given.stage),
        budget=given.data_budget << 20,
        workers=given.workers,
        keep=given.keep,
        observers=observers,
        allow_python_layers=given.allow_python_layers,
        amp=given.amp,
        group=group,
        cuda_graph=not given.no_cuda_graph,
    )
    if given.deterministic or given.tf32:
        prepare(solver.device, given.tf32, given.deterministic)
    if given.rank_clipping is not None:
        RankClipping(solver, given.rank_clipping, given.clip_until)
    given.remark(solver)
    return solver


def _start(given: SimpleNamespace, solver: Solver) -> None:
    """Loads the snapshot or weights that the options, or with --resume auto the solver, name."""
    from forcereg.solver.resume import resume_latest
    from forcereg.system.paths import resolve

    wanted = given.resume or (given.restarted and solver.param.snapshot_prefix)
    resumed = bool(wanted and resume_latest(solver))
    if given.snapshot:
        if not resumed:
            solver.restore(given.snapshot)
        return
    if given.weights is not None:
        names = [name.strip() for name in given.weights.split(",") if name.strip()]
        paths: list[Any] = list(names)
    else:
        names = [name.strip() for name in ",".join(given.own_weights).split(",") if name.strip()]
        paths = [resolve(solver.root, name) for name in names] if given.resume or given.restarted else []
    if paths and not resumed:
        fresh = [set(solver.load_weights(path).fresh) for path in paths]
        given.judge(solver, set.intersection(*fresh))
    solver.param.weights[:] = map(printable, names)  # what snapshots tell of where they come from


@contextlib.contextmanager
def _told(solver: Solver) -> Iterator[None]:
    """Tells the observers of the error that ends the block; one of the data names the last snapshot."""
    from forcereg.data.feed import DataError

    try:
        try:
            yield
        except DataError as error:
            if solver.last_snapshot is None:
                raise
            raise DataError(f"{error}; the last good snapshot is {solver.last_snapshot}") from error
    except Exception as error:
        solver.emit("error", text=str(error))
        raise
