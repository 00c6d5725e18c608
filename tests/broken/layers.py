"""One broken layer after the other, of every type (layers.txt): parameters, bottoms that don't fit, huge sizes."""

from __future__ import annotations

from typing import Any

from tests.broken.case import Case, broken, read_table

PYTHON = 'python_param {{ module: "torch.nn" layer: "ReLU" param_str: "{}" }}'.format


def _layer(id: str, kind: str, param: str, expected: str, **more: Any) -> Case:
    commands = ("python",) if kind == "Python" and id != "not-allowed" else ("check", "train")
    return broken(id, kind, param, expected, commands=commands, files={"mine.py": "class L(:"}, **more)


def _dims(value: int, count: int) -> str:
    return f"input_param {{ shape {{ {f'dim: {value} ' * count} }} }}"


LONG = [
    _layer("33-axes", "Input", _dims(1, 33), "top 'y0' would have 33 axes; a blob has at most 32"),
    _layer("32-huge-axes", "Input", _dims((1 << 63) - 1, 32), "top 'y0' would have shape [9223372036854775807"),
    _layer("30000-axes", "Input", _dims(2, 30_000), "top 'y0' would have 30000 axes; a blob has at most 32"),
    _layer("40-axes", "Reshape", f"reshape_param {{ shape {{ {'dim: 1 ' * 40} }} }}", "have 40 axes", shapes=[(1,)]),
    _layer("deep-arguments", "Python", PYTHON("[" * 100_000), "expected a module's keyword arguments", shapes=[(1,)]),
]

CASES = [*read_table(__file__, _layer), *LONG]
