"""What a broken input is: files, what the error must say, and the commands that must say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Content = str | bytes | Callable[[], bytes]

SOLVER = """net: "net.prototxt"
base_lr: 0.1
lr_policy: "fixed"
max_iter: 1
solver_mode: CPU
snapshot_after_train: false
"""
NET = (
    'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } } }\n'
    'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }\n'
    'layer { name: "l" type: "EuclideanLoss" bottom: "y" bottom: "y" top: "loss" }\n'
)
"""A small net that trains."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "summary": ("summary", "net.prototxt"),
    "check": ("check", "net.prototxt"),
    "test": ("test", "--model", "net.prototxt", "--weights", "none.h5", "--device", "cpu"),
    "train": ("train", "--solver", "solver.prototxt"),
    "check-solver": ("check", "solver.prototxt"),
    "python": ("summary", "net.prototxt", "--allow-python-layers"),
    "folder": ("summary", "."),
    "draw": ("draw", "net.prototxt", "out.txt"),
    "missing": ("check", "no.prototxt"),
}
ANY = ("summary", "check", "test", "train")
"""With and without memory behind the blobs, one phase and both."""


@dataclass(frozen=True)
class Case:
    """One broken input.

    Every one of `commands` (keys of COMMANDS) must fail with one line that holds `expected` (parts in this order);
    `kind` is the layer type that is broken, `code` the exit code (0: nothing is wrong), `growth` the MiB of memory that
    a command may take. `files` are more files by name, beside net.prototxt and solver.prototxt.
    """

    id: str
    net: Content
    expected: str | tuple[str, ...]
    commands: tuple[str, ...] = ANY
    kind: str = ""
    solver: Content = SOLVER
    code: int = 1
    growth: int = 300
    files: Mapping[str, Content] = field(default_factory=dict)

    def found_in(self, line: str) -> bool:
        """Whether the line says what is expected."""
        parts = (self.expected,) if isinstance(self.expected, str) else self.expected
        return re.search(".*".join(map(re.escape, parts)), line) is not None

    def write(self, folder: str) -> None:
        """Puts the files into `folder`."""
        for name, content in {"net.prototxt": self.net, "solver.prototxt": self.solver, **self.files}.items():
            data = content() if callable(content) else content
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)


def input_layer(name: str, shape: Sequence[int]) -> str:
    """An Input layer of one blob, in one line."""
    dims = " ".join(f"dim: {n}" for n in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def broken(
    id: str,
    kind: str,
    param: str,
    expected: str,
    shapes: Sequence[Sequence[int]] = (),
    tops: int = 1,
    commands: tuple[str, ...] = ("check", "train"),
    files: Mapping[str, Content] | None = None,
    code: int = 1,
) -> Case:
    """A net of Input blobs x0, x1, ... of these shapes and the broken layer `l` with tops y0, y1, ..."""
    blobs = " ".join([f'bottom: "x{i}"' for i in range(len(shapes))] + [f'top: "y{i}"' for i in range(tops)])
    inputs = "".join(input_layer(f"x{i}", shape) for i, shape in enumerate(shapes))
    text = f'{inputs}layer {{ name: "l" type: "{kind}" {blobs} {param} }}\n'
    where = (f"net.prototxt:{len(shapes) + 1}: layer 'l': ",) if code else ()
    return Case(f"{kind}-{id}", text, (*where, expected), commands, kind, files=files or {}, code=code)


_HEAD = re.compile(r"== (?P<kind>\S+) (?P<id>[^\s:]+):?(?P<shapes>( [\dx]+)*)( -> (?P<tops>\d))?")


def read_table(module: str, make: Callable[..., Case]) -> list[Case]:
    """The cases of the table beside `module` (.txt instead of .py), each by `make(id, kind, param, expected, ...)`.

    An entry is `== TYPE ID: SHAPE SHAPE -> TOPS` (shapes of bottoms and tops if they matter), what the layer's block
    holds beside its names, and `> ` with what the error says; an empty line ends it.
    """
    cases = []
    for entry in Path(module).with_suffix(".txt").read_text().split("\n\n"):
        head, *param, expected = entry.strip().split("\n")
        match = _HEAD.fullmatch(head)
        assert match is not None and expected.startswith("> "), entry
        shapes = [tuple(map(int, shape.split("x"))) for shape in match["shapes"].split()]
        more = {"shapes": shapes, "tops": int(match["tops"] or 1)} if match["shapes"] or match["tops"] else {}
        cases.append(make(match["id"], match["kind"], "\n".join(param), expected[2:], **more))
    return cases
