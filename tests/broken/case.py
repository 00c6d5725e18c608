"""What a broken input is: files, what the error must say, and the commands that must say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Content = str | bytes | Callable[[], bytes]

SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 solver_mode: CPU snapshot_after_train: false'
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
}
ANY = ("summary", "check", "test", "train")
"""With and without memory behind the blobs, one phase and both."""


@dataclass(frozen=True)
class Case:
    """One broken input.

    Every one of `commands` (keys of COMMANDS) must fail with one line that holds `expected`; `kind` is the layer type
    that is broken. `files` are more files by name, beside net.prototxt and solver.prototxt.
    """

    id: str
    net: Content
    expected: str
    commands: tuple[str, ...] = ANY
    kind: str = ""
    solver: Content = SOLVER
    files: Mapping[str, Content] = field(default_factory=dict)

    def write(self, folder: str) -> None:
        """Puts the files into `folder`."""
        for name, content in {"net.prototxt": self.net, "solver.prototxt": self.solver, **self.files}.items():
            data = content() if callable(content) else content
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)


def input_layer(name: str, shape: Sequence[int]) -> str:
    """An Input layer of one blob, in one line."""
    dims = " ".join(f"dim: {n}" for n in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def broken(
    id: str, kind: str, param: str, shapes: Sequence[Sequence[int]], expected: str, tops: int = 1, **more: object
) -> Case:
    """A net of Input blobs x0, x1, ... of these shapes and the broken layer `l` with tops y0, y1, ..."""
    blobs = " ".join([f'bottom: "x{i}"' for i in range(len(shapes))] + [f'top: "y{i}"' for i in range(tops)])
    inputs = "".join(input_layer(f"x{i}", shape) for i, shape in enumerate(shapes))
    text = f'{inputs}layer {{ name: "l" type: "{kind}" {blobs} {param} }}\n'
    where = f"net.prototxt:{len(shapes) + 1}: layer 'l': "
    return Case(f"{kind}-{id}", text, where + expected, kind=kind, **more)  # type: ignore[arg-type]
