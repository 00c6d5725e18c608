"""A net as a program of torch.export: torch's own operators, which run where forcereg isn't installed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forcereg.errors import ForceregError
from forcereg.exports.dims import Open
from forcereg.layers import Layer
from forcereg.layers.python import PyCaffeLayer
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec

OWN = frozenset({"aten", "prims", "higher_order"})
"""Where the operators are that every torch has."""
_AHEAD = "end in blobs in front of it (--outputs)"

Answers = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Fixed(Exception):
    """A size that can't stay open, and why."""


class _Stopped(Exception):
    """A layer that can't be recorded, and why."""

    def __init__(self, spec: LayerSpec, reason: Exception) -> None:
        super().__init__(str(reason))
        self.spec, self.reason = spec, reason


class _Call(nn.Module):
    """A net called with its inputs in their order: not all their names are ones that Python can write."""

    def __init__(self, net: Net, answers: Answers) -> None:
        super().__init__()
        self.net, self._answers, self._names = net, answers, net.inputs

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self._answers(dict(zip(self._names, inputs, strict=True)))


def record(net: Net, open_axes: Open, answers: Answers | None = None) -> Any:
    """The net as an ExportedProgram: called with its inputs in their order, it gives its outputs by name.

    `open_axes`: axes that take any size. `answers`: what makes of the inputs what is given, if not the net. Raises
    Fixed where an axis can't stay open, ForceregError for a layer that can't be recorded, or not by operators of
    torch's own.
    """
    for spec, module in net.built:
        if isinstance(module, PyCaffeLayer):
            raise spec.fail(f"type {spec.type} runs code that no program can hold; {_AHEAD}")
    # two items where a size is open: torch takes one for a size that never changes
    inputs = tuple(
        torch.zeros([max(size, 2) if axis in open_axes.get(name, {}) else size
                     for axis, size in enumerate(net.shapes[name])])
        for name in net.inputs
    )  # fmt: skip
    sizes = {name: torch.export.Dim(name) for axes in open_axes.values() for name in axes.values()}
    dynamic = tuple({axis: sizes[name] for axis, name in open_axes.get(one, {}).items()} for one in net.inputs)
    net.around = _told
    try:
        with _quiet(), torch.no_grad():
            called = _Call(net, answers or net)
            made = torch.export.export(called, inputs, dynamic_shapes=(dynamic,) if sizes else None, strict=False)
    except _Stopped as stopped:
        spec = stopped.spec
        line = _line(stopped.reason).removeprefix(f"{spec.where}: ")
        if sizes:
            raise Fixed(f"layer '{spec.name}': {line}") from stopped
        raise spec.fail(f"torch.export can't record it ({line}); {_AHEAD}") from stopped
    except Exception as error:
        if sizes:
            raise Fixed(_line(error)) from error
        raise ForceregError(f"{net.spec.filename}: torch.export can't record the net: {_line(error)}") from error
    finally:
        net.around = None
        net.reset_state()
    _check(made, net)
    return made


def image(program: Any, texts: Mapping[str, str]) -> memoryview:
    """The program as the content of a file, without the paths of this machine. `texts`: by name, beside the program."""
    for graph in _graphs(program):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files=dict(texts))
    return buffer.getbuffer()


def operators(program: Any) -> int:
    """How many operators the program runs."""
    return sum(node.op == "call_function" for graph in _graphs(program) for node in graph.nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines that torch has for who works on it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _told(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
    try:
        return module(*bottoms)
    except Exception as error:
        raise _Stopped(spec, error) from error


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # what comes behind these is for who works on torch
    return lines[0].partition("! For more information")[0].partition(" (unhinted:")[0][:200].rstrip(".")


def _graphs(program: Any) -> list[Any]:
    return [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]


def _check(program: Any, net: Net) -> None:
    """Raises ForceregError for an operator that torch by itself lacks."""
    paths = {id(module): name for name, module in net.named_modules()}
    layers = {f"net.{paths[id(module)]}": spec for spec, module in net.built if module is not None}
    for node in (node for graph in _graphs(program) for node in graph.nodes if node.op == "call_function"):
        if getattr(node.target, "namespace", "aten") not in OWN:
            stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path in layers]
            told = f"runs {node.target}, which torch has only where it was registered; {_AHEAD}"
            raise layers[stack[-1]].fail(told) if stack else ForceregError(f"{net.spec.filename}: {told}")
