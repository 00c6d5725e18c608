"""The `forcereg` command: a table of commands, each imported only when it is called."""

from __future__ import annotations

from forcereg.system.isolation import leave_out_working_directory

leave_out_working_directory()  # before anything is imported that could be found there
# ruff: noqa: E402

import gc
import importlib
import re
import sys
import warnings
from typing import Any, NoReturn

import click

from forcereg.errors import ForceregError, printable
from forcereg.system.memory import is_shortage, refuse_what_cannot_be_loaded, shortage
from forcereg.system.terminal import echo, prepare

COMMANDS = {
    "train": "Train a net from a solver prototxt.",
    "finetune": "Train a decomposed net further, by the original's solver.",
    "test": "Score a net: the mean of each output.",
    "confusion": "Count which classes a net takes for which, over the whole set.",
    "time": "Measure each layer's forward and backward pass.",
    "device_query": "Tell what GPUs there are.",
    "decompose": "Replace layers by low-rank chains: by error, ranks or budget.",
    "ranks": "Show the rank that each layer needs at several errors.",
    "sensitivity": "Show the accuracy with each layer decomposed alone.",
    "prune": "Make the smallest weights zero, where it pays, and fine-tune.",
    "filters": "Draw a layer's filters: images, basis, clusters, angles.",
    "frontier": "Compare nets: accuracy against cost, in MACs and measured time.",
    "shrink": "Cut filters, channels and branches that are zero out of a net.",
    "split-groups": "Turn grouped convolutions into parallel layers.",
    "merge-groups": "Turn parallel layers into grouped convolutions.",
    "deploy": "Write a trained net for use: inputs for data, no labels.",
    "export": "Write a trained net for other programs: ONNX, proved equal.",
    "convert": "Write a model or solver state as binary or HDF5.",
    "data": "Make LMDBs (mnist, digits, cifar10, images) and mean images.",
    "check": "Look for everything that would go wrong, without running.",
    "summary": "Print a net's layers: shapes, parameters, MACs, memory.",
    "draw": "Draw a net as svg, png or text.",
    "layers": "List the layer types that run, with their parameters.",
    "sweep": "Train a grid of settings, cut and fine-tune each, and compare.",
    "tune": "Search the force with which nets are best when cut.",
    "lr-find": "Find a learning rate by a range test.",
    "plot": "Draw loss, scores, rate and ranks of runs from their logs.",
    "report": "Write a page about runs, snapshots and studies, to be shown.",
    "classify": "Score images by a trained net, as Caffe's classify.py.",
    "detect": "Score windows of images by a trained net, as detect.py.",
    "python": "Run a Python script that imports caffe, unchanged.",
    "new": "Write a starter: a solver and its net with force set up.",
    "configs": "List and copy the nets and solvers that come with forcereg.",
}
"""Name -> help line; the command itself is `command` in forcereg.commands.<name>."""


FULL_COLLECTION = 1000
"""Collections of the middle generation to a full one, which walks through all of torch, in 0.1 s: loading would have
three. Nets and tensors don't wait for one."""


class LazyGroup(click.Group):
    """Loads a command's module when it is called, so that --help needs no torch."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options may have one dash, and come before the command, as in Caffe."""
        first = args[0] if args else ""
        if first in ("-help", "-version"):
            args = ["-" + first, *args[1:]]
        elif first.startswith("-") and first not in {opt for param in self.get_params(ctx) for opt in param.opts}:
            at = next((index for index, arg in enumerate(args) if arg in COMMANDS), 0)
            args = [args[at], *args[:at], *args[at + 1 :]]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"forcereg.commands.{cmd_name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from forcereg.errors import did_you_mean

        # not while a shell completes a line, when nothing is wrong yet
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command '{args[0]}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from forcereg.version import __version__

        echo(f"forcereg {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error (works behind a command too).")
def cli(debug: bool) -> None:
    """Caffe-compatible training with Force Regularization and low-rank decomposition, on PyTorch.

    \b
    forcereg train --solver solver.prototxt
    forcereg decompose --snapshot net_iter_10000.caffemodel.h5 --error 0.05

    \b
    Completion in bash (or zsh, fish):
    eval "$(_FORCEREG_COMPLETE=bash_source forcereg)"
    """


def main(argv: list[str] | None = None) -> None:
    """Runs the command line: one clear line for an error, exit code 1 for bad input and 2 for bad usage."""
    own, script = _split(list(sys.argv[1:] if argv is None else argv))
    debug = "--debug" in own
    # here, because it may stand behind a command, which doesn't know it
    args = [arg for arg in own if arg != "--debug"] + script
    prepare()
    refuse_what_cannot_be_loaded()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION)
    if not script:
        warnings.formatwarning = lambda message, *_, **__: f"forcereg: warning: {printable(str(message))}\n"
    try:
        # errors come here: click's own way writes the usage above each
        code = cli.main(args, prog_name="forcereg", standalone_mode=False) or 0
        _leave(code)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(*error.format_message().splitlines())
        sys.exit(0)
    except click.ClickException as error:
        _fail(error.format_message() + _usage_hint(error), error.exit_code, debug)
    except (click.Abort, KeyboardInterrupt):
        # 128 + SIGINT, as shells have it
        _fail("interrupted", 130, debug)
    except BrokenPipeError:  # who read standard output has seen enough
        _leave(1)
    except ForceregError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:
        if is_shortage(error):
            _fail(str(shortage(error)), 1, debug)
        summary = (str(error).splitlines() or [""])[0]
        _fail(f"internal error: {type(error).__name__}: {summary} (run again with --debug)", 1, debug)


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are ours, and those behind `python`, which are a script's."""
    first = next((index for index, arg in enumerate(args) if not arg.startswith("-")), len(args))
    behind = first + 1 if args[first : first + 1] == ["python"] else len(args)
    return args[:behind], args[behind:]


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" (see {context.command_path} --help)" if context else ""


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        echo(*traceback.format_exc().splitlines(), err=True)
    from forcereg.solver.launch import said_by

    # click lists an option's choices on lines of their own
    message = printable(re.sub(r"\n\t?", " ", message))
    if (line := said_by(message)) is not None:
        echo("forcereg: " + line, err=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    from forcereg.solver.launch import leave

    leave(code)


if __name__ == "__main__":
    main()
