"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import click

from forcereg.errors import ForceregError, UsageError


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--gpu and --device, which win over the solver's solver_mode."""
    function = click.option(
        "--gpu", metavar="N|N,M|all", help="GPUs to run on, counted from 0; one: the same as --device cuda:N."
    )(function)
    return click.option("--device", metavar="auto|cpu|cuda", help="Where to run; wins over the solver's solver_mode.")(
        function
    )


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--data-budget and --decode-budget (MiB), and --workers."""
    function = click.option(
        "--workers", type=click.IntRange(min=0), metavar="N", default=0, show_default=True,
        help="Threads that decode for each data layer; 0: as many as there are cores, at most 8.",
    )(function)  # fmt: skip
    return click.option(
        "--data-budget", type=click.IntRange(min=1), metavar="MIB", default=2048, show_default=True,
        help="Memory that one decoded data set may take; larger ones stream.",
    )(decode_option(function))  # fmt: skip


def start_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--max-iter and --weights, of each of several runs."""
    function = click.option(
        "--weights", metavar="A,B", default="", type=click.Path(),
        help="Start every run from these models (comma separated).",
    )(function)  # fmt: skip
    return click.option("--max-iter", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Of every run, as train's.")(
        function
    )


def jobs_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--jobs, --executor and --resource, of what runs several trainings."""
    options = (
        click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                     help="Run so many at a time, in processes that divide cores and GPUs."),
        click.option("--executor", default="local", show_default=True, metavar="local|slurm|ray",
                     help="Who starts them: this machine, Slurm (by submitit) or Ray."),
        click.option("--resource", multiple=True, metavar="NAME=VALUE",
                     help="What each asks Slurm or Ray for, as partition=gpu or num_gpus=1; repeatable."),
    )  # fmt: skip
    # the last one applied is the first in --help
    for option in reversed(options):
        function = option(function)
    return function


def devices_in(options: dict[str, Any]) -> list[str] | None:
    """The devices that --gpu and --device name, taken out of the options; None for the solver's. Raises UsageError."""
    found = asked_devices(options.pop("gpu"), options.pop("device"))
    return [name for name in found if name is not None] or None


def decode_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--decode-budget (MiB), which holds for the whole process."""
    return click.option(
        "--decode-budget", type=click.IntRange(min=1), metavar="MIB", expose_value=False, callback=_decode_budget,
        help="Memory that decoding may take, all images together; a larger one is refused.  [default: 1024; x>=1]",
    )(function)  # fmt: skip


def _decode_budget(ctx: click.Context, param: click.Parameter, mib: int | None) -> None:
    from forcereg.data.budget import decode_budget

    if mib is not None:
        decode_budget(mib)


class Bandwidth(click.ParamType):
    """Bits a second, as in 1e9, 100M or 1G."""

    name = "bandwidth"
    _UNITS: ClassVar = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        try:
            found = float(number) * (self._UNITS[unit] if unit else 1)
        except (ValueError, KeyError):
            found = math.nan
        if not 0 < found < math.inf:
            self.fail(f"'{value}' is no bandwidth; expected bits a second, as in 1e9, 100M or 1G", param, ctx)
        return found


def gradient_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--gradients and what goes with it: how several processes average theirs."""
    options = (
        click.option(
            "--gradients", default="dense", show_default=True, metavar="dense|bf16|fp16|powersgd|ternary|report",
            help="How several processes average theirs; report: measure all ways, and train nothing.",
        ),
        click.option("--clip-sigma", type=click.FloatRange(min=0), metavar="C", default=2.5, show_default=True,
                     help="Of ternary: clip each tensor at so many standard deviations; 0: not."),
        click.option("--dense-layers", metavar="last|A,B", default="",
                     help="Of ternary: layers whose gradients are sent whole; last: the last one that learns."),
        click.option("--min-size", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
                     help="Of ternary: so are tensors of fewer values."),
        click.option("--powersgd-rank", type=click.IntRange(min=1), metavar="R", default=1, show_default=True,
                     help="Of powersgd: the rank of its factors."),
        click.option("--powersgd-start", type=click.IntRange(min=0), metavar="ITER", default=1000, show_default=True,
                     help="Of powersgd: dense before this iteration."),
        click.option("--bandwidth", type=Bandwidth(), metavar="BITS",
                     help="Of report: the link to tell of, bits a second, as in 1G.  [default: as measured here]"),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def code_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--allow-python-layers and --import."""
    option = click.option("--allow-python-layers", is_flag=True, help="Run the code that a net's Python layers name.")
    return option(import_option(function))


def import_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--import: modules that are imported while the command line is read."""
    return click.option(
        "--import", multiple=True, metavar="MODULE", expose_value=False, callback=_import,
        help="Import this Python module first: it registers layer types of your own; repeatable.",
    )(function)  # fmt: skip


def _import(ctx: click.Context, param: click.Parameter, modules: tuple[str, ...]) -> None:
    from forcereg.system.plugins import import_module

    for module in modules:
        try:
            import_module(module)
        except ForceregError as error:
            raise ForceregError(f"--import {module}: {error}") from error


def one_device(gpu: str | None, device: str | None) -> str | None:
    """The one device that the two options name, None for the solver's. Raises UsageError for both, and for several."""
    found = asked_devices(gpu, device)
    if len(found) > 1:
        raise UsageError(f"--gpu is '{gpu}'; this runs on one GPU")
    return found[0]


def asked_devices(gpu: str | None, device: str | None) -> list[str | None]:
    """The devices that the two options name, [None] if neither is given. Raises UsageError for both.

    `--gpu all` where there is none is "cuda", which ends in a warning and the CPU.
    """
    # empty: a shell variable that isn't set
    if gpu is None or gpu == "":
        return [device]
    if device is not None:
        raise UsageError("--gpu and --device are both given; use one")
    if gpu == "all":
        import torch

        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]
    numbers = gpu.split(",")
    # isdigit alone takes other scripts' digits, and superscripts, which are no int
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise UsageError(f"--gpu is '{gpu}'; expected a GPU's number, counted from 0, several as in 0,1, or all")
    if len(set(map(int, numbers))) < len(numbers):
        raise UsageError(f"--gpu is '{gpu}'; each GPU can be named once")
    return [f"cuda:{int(number)}" for number in numbers]


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--runtime and --threads, of what measures forward passes."""
    function = click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Of the CPU to measure with.  [default: torch's]"
    )(function)
    return click.option(
        "--runtime", metavar="torch|onnxruntime|openvino", default="torch", show_default=True,
        help="What runs the layers and nets that are measured, as ONNX models where it isn't torch.",
    )(function)  # fmt: skip


def sparse_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--sparse, of what runs nets that don't learn."""
    return click.option(
        "--sparse", metavar="auto|dense|ccnmm|csr|direct",
        help="How convolutions leave out weights that are 0; auto: as is fastest for each, measured first.  "
        "[default: as the net's conv_mode says]",
    )(function)  # fmt: skip


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--format, one of `net.made.FORMATS`, of the weights that commands make of a snapshot's."""
    return click.option(
        "--format", "form", type=click.Choice(["binary", "hdf5"]),
        help="Of the weights written.  [default: the snapshot's]",
    )(function)  # fmt: skip


def flag(name: str) -> str:
    """The option of a keyword."""
    return f"--{name.replace('_', '-')}"


def names_in(text: str) -> list[str]:
    """The names or paths of an option "A,B", without empty ones."""
    return [name.strip() for name in text.split(",") if name.strip()]


def net_options(function: Callable[..., Any], phase: str = "TEST") -> Callable[..., Any]:
    """--phase, --level, --stage and --input-shape: which layers of a net to look at, and of what size."""
    options = (
        click.option("--phase", default=phase, show_default=True, metavar="TRAIN|TEST", help="Phase to look at."),
        click.option("--level", type=int, default=0, help="Level of the net's state."),
        click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated."),
        input_shape_option,
    )
    # the last one applied is the first in --help
    for option in reversed(options):
        function = option(function)
    return function


def input_shape_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--input-shape, for `given_shapes`."""
    return click.option(
        "--input-shape", multiple=True, metavar="BLOB=N,C,H,W",
        help="Shape of an input or of a data layer's top, whose source is then not opened; repeatable.",
    )(function)  # fmt: skip


def given_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """--input-shape data=10,3,227,227 ... as a dict. Raises UsageError."""
    shapes = {}
    for text in texts:
        # from the right: a blob's name may have an = in it
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            name = ""
        if not name or min(shapes[name]) < 0:
            raise UsageError(f"--input-shape is '{text}'; expected BLOB=N,C,H,W as in data=10,3,227,227")
    return shapes
