"""Whether a written ONNX file computes what the net does: both run on the same inputs, compared blob by blob."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.exports.model import MISSING, Written, titles
from forcereg.layers import Layer
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec

TOLERANCE = 1e-4
"""How much of a blob's largest magnitude its values may differ: float32 sums in another order differ by 1e-7 a layer,
which deep nets add up to 1e-5."""
SMALLEST = 1e-6
"""What values may differ by however small they all are."""
JUMPS = 1e-3
"""Which part of a blob's values may differ at all in layers whose values jump where rounding decides."""
JUMPING = frozenset({"ArgMax", "Threshold"})

Blobs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Proof:
    """What was compared: `blobs` of each of `batches`; `difference`: the largest, next to the magnitude of its `blob`.

    `magnitude`: that blob's largest.
    """

    batches: int
    blobs: int
    difference: float
    blob: str
    magnitude: float


class Runtime:
    """ONNX Runtime on a file, also for values in between (`blobs`): a copy that gives these is run beside it.

    `beside`: a file of constants, and the name that the other calls it by.
    """

    def __init__(self, path: Path, blobs: Iterable[str], beside: tuple[Path, str] | None = None) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise ForceregError(MISSING) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with _in_a_folder(path, beside) as (here, folder):
            try:
                onnx.checker.check_model(here, full_check=True)
                model = onnx.load(here, load_external_data=False)
                known = {value.name for value in model.graph.output}
                self.names = [name for name in dict.fromkeys(blobs) if name not in known]
                model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in self.names)
                onnx.save(model, folder / "all.onnx")
                self._file, self._all = (
                    onnxruntime.InferenceSession(one, options, providers=["CPUExecutionProvider"])
                    for one in (here, folder / "all.onnx")
                )
            except Exception as error:
                raise ForceregError(f"ONNX Runtime doesn't take the file: {' '.join(str(error).split())}") from error
        self.outputs = [value.name for value in self._file.get_outputs()]

    def __call__(self, inputs: Blobs) -> dict[str, np.ndarray]:
        """The outputs of the file itself, and of the copy the values in between."""
        try:
            found = dict(zip(self.outputs, self._file.run(self.outputs, dict(inputs)), strict=True))
            if self.names:
                found |= dict(zip(self.names, self._all.run(self.names, dict(inputs)), strict=True))
        except Exception as error:
            raise ForceregError(f"ONNX Runtime can't run the file: {' '.join(str(error).split())}") from error
        return found


@contextlib.contextmanager
def _in_a_folder(path: Path, beside: tuple[Path, str] | None) -> Iterator[tuple[Path, Path]]:
    """A model's path, and a folder for others; with `beside` both files lie there under names that fit together."""
    with TemporaryDirectory(prefix=".forcereg", dir=path.parent) as name:
        folder = Path(name)
        if beside is None:
            yield path, folder
            return
        staged, called = beside
        shutil.copyfile(path, folder / "model.onnx")
        # moved, not linked: runtimes refuse constants that have two names
        staged.rename(folder / called)
        try:
            yield folder / "model.onnx", folder
        finally:
            (folder / called).rename(staged)


@torch.no_grad()
def recorded(net: Net, inputs: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """Every top of every layer at the time when it was written, by the layer's title and the top's index.

    Hidden state begins as 0, as in a file.
    """
    found: dict[tuple[str, int], Tensor] = {}
    called = titles(net.spec.layers)

    def around(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        made = module(*bottoms)
        for index, top in enumerate((made,) if isinstance(made, Tensor) else made):
            # a layer behind may work on it in place
            found[called[id(spec)], index] = top.clone()
        return made

    net.reset_state()
    net.around = around
    try:
        net(dict(inputs))
    finally:
        net.around = None
    return found


class Comparison:
    """Compares batches, and keeps the largest difference; `prove` gives the result."""

    def __init__(self, written: Written, runtime: Runtime, net: Net, folds: Mapping[str, list[str]]) -> None:
        self.written, self.runtime, self.net = written, runtime, net
        # what a folded layer gives is what the last of those that went into it gave
        self._last = {base: names[-1] for base, names in folds.items()}
        called = titles(net.spec.layers)
        self._types = {called[id(spec)]: spec.type for spec in net.spec.layers}
        self._best = (-1.0, 0.0, "", 0.0)
        self.batches = 0

    def add(self, inputs: Mapping[str, Tensor], fed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Compares one batch, of which the file gets `fed`; its blobs. Raises ForceregError at the first difference."""
        expected = recorded(self.net, inputs)
        found = self.runtime({name: value.numpy() for name, value in fed.items()})
        self.batches += 1
        for (layer, index), value in self.written.tops.items():
            self._compare(value, self._last.get(layer, layer), index, expected, found[value])
        return found

    def _compare(
        self, value: str, layer: str, index: int, expected: Mapping[tuple[str, int], Tensor], found: np.ndarray
    ) -> None:
        ours = expected[layer, index].numpy()
        where = f"the file's '{value}' (layer '{layer}')"
        if ours.shape != found.shape:
            raise ForceregError(f"{where} has shape {list(found.shape)}, ours {list(ours.shape)}; nothing was written")
        with np.errstate(invalid="ignore"):
            off = np.where((ours == found) | (np.isnan(ours) & np.isnan(found)), 0, np.abs(ours - found))
        magnitude = float(np.abs(ours[np.isfinite(ours)]).max(initial=0))
        bound = TOLERANCE * magnitude + SMALLEST
        # NaN is none of ours, and larger than any bound
        wrong = ~(off <= bound)
        largest = float(off.max(initial=0))
        jumps = self._types[layer] in JUMPING or (self._types[layer] == "Pooling" and index > 0)
        if wrong.mean() > JUMPS if jumps and off.size else wrong.any():
            raise ForceregError(
                f"{where} differs from ours by {largest:.3g}, of values up to {magnitude:.3g}, more than {bound:.1g}; "
                f"it is the first, nothing was written (--no-verify writes it all the same)"
            )
        if not jumps:
            self._best = max(self._best, (largest / (magnitude or 1), largest, value, magnitude))

    def takes(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the file takes an input of this shape."""
        (given,) = (value for value in self.written.proto.graph.input if value.name == name)
        sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        return len(sizes) == len(shape) and all(a in (0, b) for a, b in zip(sizes, shape, strict=True))

    def last(self, blob: str) -> str | None:
        """What a blob of the net is called in the file when all layers have worked on it; None if it isn't there."""
        called = titles(self.written.layers)
        tops = [self.written.tops.get((called[id(spec)], spec.tops.index(blob)))
                for spec in self.written.layers if blob in spec.tops]  # fmt: skip
        return tops[-1] if tops else None

    def prove(self) -> Proof:
        """What was found by now."""
        _, difference, blob, magnitude = self._best
        return Proof(self.batches, len(set(self.written.tops.values())), difference, blob, magnitude)


def random_inputs(
    net: Net, shapes: Mapping[str, tuple[int, ...]], seed: int, pixels: Collection[str] = ()
) -> dict[str, Tensor]:
    """Inputs of these shapes from a seed: normal values, and where a layer reads indices or marks those it takes.

    `pixels`: inputs of whole numbers from 0 to 255.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randint(0, 256, shape, generator=generator).float()
        if name in pixels
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    # what hands on the values of an input, and how many different ones each of its readers takes
    origin, takes = {name: name for name in found}, {name: set[int]() for name in found}
    for spec in net.spec.layers:
        for index, bottom in enumerate(spec.bottoms):
            name = origin.get(bottom)
            if name is not None and (most := _most(net, spec, index)):
                # of a smaller batch no row is listed that it hasn't
                rows = shapes[name][0] if spec.type == "BatchReindex" and shapes[name] != net.shapes[name] else most
                takes[name].add(min(most, rows))
        if spec.type in ("Split", "Reshape", "Flatten") and spec.bottoms[0] in origin:
            origin |= dict.fromkeys(spec.tops, origin[spec.bottoms[0]])
    indices = {
        name: torch.randint(0, min(most), shapes[name], generator=generator).float()
        for name, most in takes.items()
        if most
    }
    return {**found, **indices}


def _most(net: Net, spec: LayerSpec, index: int) -> int:
    """How many indices or marks a layer takes in this bottom; 0 where any number will do."""
    if spec.type == "Embed":
        return int(spec.message.embed_param.input_dim)
    if spec.type == "BatchReindex" and index == 1:
        return net.shapes[spec.bottoms[0]][0]
    if spec.type == "Filter" and index == len(spec.bottoms) - 1:
        return 2
    marks = {"LSTM": 1, "RNN": 1, "LSTMUnit": 2}
    return 2 if marks.get(spec.type) == index else 0
