"""forcereg train"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.gflags import CaffeCommand, arguments
from forcereg.commands.options import (
    asked_devices,
    code_options,
    data_options,
    device_options,
    flag,
    gradient_options,
    names_in,
)
from forcereg.commands.reporting import ready, report_option, write
from forcereg.errors import UsageError

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver
    from forcereg.system.events import Event, Observer

OWN = ("gpu", "nproc", "log_json", "log_dir", "tracker", "report", "settings", "no_cuda_graph")
"""Options that aren't keywords."""
EFFECT = click.Choice(["stop", "snapshot", "none"])


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg train --solver configs/examples/mnist/lenet_force_solver.prototxt --seed 1",
)
@click.option("--solver", required=True, metavar="FILE", type=click.Path(), help="Solver prototxt.")
@click.option("--snapshot", metavar="FILE", type=click.Path(), help="Continue from this solver state.")
@click.option("--resume", type=click.Choice(["auto"]),
              help="Continue from the newest complete snapshot of the prefix; start fresh if none.")  # fmt: skip
@click.option("--masks", type=click.Choice(["stored", "rebuild"]),
              help="Frozen weights when a run goes on: those stored in the state (the default), or rebuilt from the "
                   "weights that are zero.")  # fmt: skip
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
@click.option("--warmup", type=click.IntRange(0, 2**31 - 1), metavar="N",
              help="The same as --set warmup_iter=N: let the rate rise to its policy's over N iterations.")  # fmt: skip
@click.option("--ema", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="DECAY",
              help="The same as --set ema_decay=DECAY: test and save averaged weights too; as in 0.999.")  # fmt: skip
@click.option("--rank-clipping", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
              help="Reduce the ranks of a decomposed net at each test interval: each X_lowrank -> X_linear keeps this "
                   "share of its weight's squared norm, as in 0.99.")  # fmt: skip
@click.option("--clip-until", type=click.IntRange(min=1), metavar="ITER",
              help="With --rank-clipping: reduce no ranks from this iteration on.")  # fmt: skip
@click.option("--teacher", metavar="FILE", type=click.Path(),
              help="Learn from this snapshot's net as well: from its scores for the same batch.")  # fmt: skip
@click.option("--teacher-model", metavar="FILE", type=click.Path(),
              help="The teacher's net prototxt, where its snapshot doesn't hold one.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0.001, 100), metavar="T", default=4.0, show_default=True,
              help="With --teacher: what the scores of both are divided by.")  # fmt: skip
@click.option("--teacher-weight", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", default=0.5,
              show_default=True, help="With --teacher: its part of the loss; the labels' is the rest.")  # fmt: skip
@click.option("--log-json", metavar="FILE", type=click.Path(),
              help="Also write every event there, one JSON object a line.")  # fmt: skip
@click.option("--log-dir", metavar="DIR", type=click.Path(), help="Also write TensorBoard curves there.")
@click.option("--tracker", multiple=True, metavar="NAME[:WHERE]",
              help="Also track the run there: tensorboard:DIR, mlflow[:URI], wandb[:PROJECT], "
                   "trackio[:PROJECT]; repeatable.")  # fmt: skip
@report_option
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep only the newest N snapshots.")
@click.option("--keep-best", is_flag=False, flag_value="accuracy", metavar="[OUTPUT]",
              help="Keep the net of the best test as PREFIX_best, by this output of the test net (accuracy); "
                   "OUTPUT:max or OUTPUT:min where it isn't known which way is better, OUTPUT#1 for that of test net "
                   "1.")  # fmt: skip
@click.option("--patience", type=click.IntRange(min=1), metavar="N",
              help="End the run, with a snapshot, after N tests without a better one.")  # fmt: skip
@click.option("--stop-when", metavar="'OUTPUT>=VALUE'",
              help="End the run, with a snapshot, once a test comes to that, as in 'accuracy>=0.99'.")  # fmt: skip
@click.option("--on-nan", default="stop", show_default=True, metavar="stop|rollback:N:FACTOR",
              help="Behind a loss that isn't finite: stop, or go back to the last snapshot with the rate times FACTOR "
                   "(0.5), at most N (3) times.")  # fmt: skip
@data_options
@click.option("--amp", type=click.Choice(["bf16", "fp16"]),
              help="Train in mixed precision; weights, losses, updates and tests stay float32.")  # fmt: skip
@click.option("--deterministic", is_flag=True, help="Deterministic operations on the GPU too.")
@click.option("--tf32", is_flag=True, help="Allow TF32 in float32 products on the GPU.")
@click.option("--no-cuda-graph", is_flag=True,
              help="Launch each operation on the GPU by itself, not whole iterations as CUDA graphs.")  # fmt: skip
@gradient_options
@click.option("--find-batch", is_flag=True,
              help="Train nothing: find the largest batch with which iterations fit the GPU's memory.")  # fmt: skip
@click.option("--callback", multiple=True, metavar="MODULE:FUNCTION",
              help="Call this function of your own with each event and the solver; repeatable.")  # fmt: skip
@code_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train the net of a solver prototxt.

    SIGINT (Ctrl-C) and SIGTERM write a snapshot and stop, SIGHUP writes one and goes on. With several GPUs (or --nproc,
    or under torchrun) each trains on a part of the data.
    """
    from forcereg.workflows.train import train

    run(ctx, options, train)


def run(ctx: click.Context, options: Mapping[str, Any], train: Callable[..., Solver]) -> None:
    """Trains by `train` as the options of `command` say: here, or by several processes. Raises ForceregError."""
    from forcereg.solver.asked import (
        AVERAGING,
        REPORT,
        TEACHING,
        check_clipping,
        check_find_batch,
        check_gradients,
        check_start,
        check_teacher,
    )
    from forcereg.solver.goal import Aims
    from forcereg.solver.launch import effects, in_group, launch
    from forcereg.solver.rollback import OnNan
    from forcereg.solver.trackers.base import check

    # before processes are started, and by the options' names
    check_start(options["snapshot"], options["resume"], options["weights"], flag)
    check_find_batch(options["find_batch"], options["snapshot"], options["resume"], options["gradients"], flag)
    check_clipping(options["rank_clipping"], options["clip_until"], flag)
    check_teacher({name: options[name] for name in TEACHING}, flag)
    Aims.of(options["keep_best"], options["patience"], options["stop_when"], flag)
    options = {**options, "dense_layers": tuple(names_in(options["dense_layers"]))}
    check_gradients({name: options[name] for name in (*AVERAGING, "gradients", "bandwidth")}, flag)
    OnNan.of(options["on_nan"], flag)
    for asked in options["tracker"]:
        check(asked)
    ready(report := options["report"])
    devices = asked_devices(options["gpu"], options["device"])
    count = options["nproc"] or len(devices)
    if count != len(devices) > 1:
        raise UsageError(f"--nproc is {count}, --gpu names {len(devices)} GPUs; name one for each process")
    if options["find_batch"] and count > 1:
        raise UsageError("--find-batch is for one process and its GPU; each of several takes as large a batch")
    # in a group this is one of the processes that were started so
    if count > 1 and not in_group():
        meant = effects(options["sigint_effect"], options["sighup_effect"])
        launch(count, [str(ctx.info_name), *arguments(ctx)], meant)
        return
    # a page's curves: those of a run that was resumed come from the same file
    log_json = options["log_json"] or (report and str(Path(report).with_suffix(".jsonl")))
    views = Views(log_json, options["log_dir"], options["tracker"])
    solver = train(**keywords(options, devices), measure_force=views.measured, observer=views)
    if solver.group.rank == 0 and options["gradients"] != REPORT and not options["find_batch"]:
        views.log.line("Optimization Done.")  # once more, as Caffe's command does behind its solver
        if report and not solver.stop_requested:  # who has stopped it doesn't wait for a page
            snapshots = [] if solver.last_snapshot is None else [solver.last_snapshot]
            alike = {name: options[name] for name in ("data_budget", "workers", "allow_python_layers")}
            for line in write([log_json, *snapshots], report, device=str(solver.device), **alike):
                views.log.line(line)


def keywords(options: Mapping[str, Any], devices: Sequence[str | None]) -> dict[str, Any]:
    """The options as Python's keywords; of other names or types are these."""
    asked = {name: value for name, value in options.items() if name not in OWN}
    return {
        **asked,
        "device": None if None in devices else devices,
        "set": options["settings"],
        "resume": options["resume"] is not None,
        "weights": None if options["weights"] is None else names_in(options["weights"]),
        "cuda_graph": not options["no_cuda_graph"],
    }


class Views:
    """Where a run's events go: into Caffe's lines, and what the options ask for; on a terminal with a bar."""

    def __init__(self, log_json: str | None, log_dir: str | None, trackers: Sequence[str] = ()) -> None:
        # only they show it, and it costs time
        self.measured = bool(log_json or log_dir or trackers)
        self._log_json, self._log_dir, self._trackers = log_json, log_dir, trackers
        self._views: list[Observer] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Views:
        from forcereg.solver.log import GlogWriter  # not before the solver is read: it loads torch

        self.log = GlogWriter()
        self._add(self.log)
        if self._log_json:
            from forcereg.solver.jsonlog import JsonLog

            self._add(self._open.enter_context(JsonLog(self._log_json)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def __call__(self, event: Event) -> None:
        if event.kind == "start":  # before Caffe's first lines, which go above the bar
            self._start()
        for view in self._views:
            view(event)

    def _start(self) -> None:
        """Curves and bar are of the training itself: what ends before it leaves no folder."""
        from forcereg.solver.log import ProgressBar
        from forcereg.solver.trackers import opened
        from forcereg.system.terminal import on_terminal

        if self._log_dir:
            from forcereg.solver.trackers.tensorboard import TensorBoard

            self._add(self._open.enter_context(TensorBoard(self._log_dir)))
        for asked in self._trackers:
            self._add(self._open.enter_context(opened(asked)))
        if on_terminal():
            self._add(self._open.enter_context(ProgressBar(self.log)))

    def _add(self, view: Observer) -> None:
        self._views.append(view)
