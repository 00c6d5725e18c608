"""The `.pt2` target: the net for use as a program of torch.export, proved in a process without forcereg."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.exports.dims import Open, batch_axes, sizes_of
from forcereg.exports.graph import Free, Varying
from forcereg.exports.model import Written, titles
from forcereg.exports.program import Fixed, image, operators, record
from forcereg.exports.proof import Comparison, random_inputs, recorded
from forcereg.exports.ready import Ready, about, prepared
from forcereg.exports.request import Exported, Request, Shape
from forcereg.exports.scores import scored
from forcereg.net.deploy.files import DeployedNet
from forcereg.net.module import Net
from forcereg.schema.text import to_text
from forcereg.system.files import replace_file

OPTIONS = frozenset({"fold", "verify", "solver", "iterations"})
NET, ABOUT = "net.prototxt", "forcereg.json"
"""The texts in the file: the net's, and a JSON object of what is known of it."""


def write_program(request: Request) -> Exported:
    """Writes `request.out`. Raises ForceregError; then nothing has its name that had it not before."""
    options = request.options
    deployed = request.deployed()
    ready = prepared(deployed, fold=bool(options.get("fold", True)), allow=request.allow_python_layers)
    program, open_axes, notes = _recorded(ready, request.batch is not None)
    inputs = {name: _shape(ready.net.shapes[name], open_axes.get(name, {})) for name in ready.net.inputs}
    outputs = _outputs(ready, open_axes)
    known = {**about(deployed), "inputs": inputs, "outputs": outputs, "preparation": dict(deployed.preparation)}
    texts = {NET: to_text(deployed.net), ABOUT: json.dumps(known, ensure_ascii=False)}
    done = Exported(
        paths=(str(request.out),),
        summary=f"a program of {operators(program)} operators",
        inputs=inputs,
        outputs=outputs,
        preparation=deployed.preparation,
        notes=(*_remarks(ready.net), *notes),
    )
    with replace_file(request.out) as path:
        path.write_bytes(image(program, texts))
        if options.get("verify", True):
            done = _proved(done, request, deployed, ready, path)
    return done


def _recorded(ready: Ready, fixed: bool) -> tuple[Any, Open, tuple[str, ...]]:
    """The program, the axes that stay open in it, and what is to be said. Raises ForceregError."""
    net = ready.net

    def answers(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = net(inputs, blobs=ready.outputs)
        return {name: found[name] for name in ready.outputs}

    def made(axes: Open) -> Any:
        return record(net, axes, answers)

    if fixed or not net.inputs:
        return made({}), {}, ()
    try:
        axes = batch_axes(net)
        sizes_of(net, axes)
        return made(axes), axes, ()
    except Varying as error:
        why = f"with another one the net {error}"
    except Fixed as error:
        why = f"torch.export can't leave it open ({error})"
    return made({}), {}, (f"the batch is fixed: {why}",)


def _carrying(net: Net) -> list[str]:
    return [spec.name for spec, module in net.built if module is not None and module.carried()]


def _remarks(net: Net) -> tuple[str, ...]:
    names = ", ".join(_carrying(net))
    return (f"hidden state of {names} is carried from call to call, as in the net",) if names else ()


def _shape(shape: tuple[int, ...], axes: Mapping[int, str]) -> Shape:
    return tuple(axes.get(axis, size) for axis, size in enumerate(shape))


def _outputs(ready: Ready, open_axes: Open) -> dict[str, Shape]:
    """The outputs' shapes, with names for sizes that hang on the batch, or that nobody knows before."""
    net = ready.net
    dims = {top: size for (spec, _), tops in zip(net.built, sizes_of(net, open_axes).tops, strict=True)
            for top, size in zip(spec.tops, tops, strict=True)}  # fmt: skip
    names = {dims[name][axis]: called for name, axes in open_axes.items() for axis, called in axes.items()}
    return {name: tuple(names.get(size, f"{name}_{axis}") if isinstance(size, Free) else size
                        for axis, size in enumerate(dims[name])) for name in ready.outputs}  # fmt: skip


# -- the proof

SCRIPT = Path(__file__).with_name("alone.py")
"""Run by path, never imported: it shuts forcereg out."""


class Alone:
    """A process without forcereg that runs programs, all with the same inputs; called as a runtime of `proof`.

    `names`: of their inputs, in order. `anew`: each call begins with the hidden state that they were written with.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], anew: bool, *programs: str) -> None:
        self._folder, self._names, self._number = folder, names, 0
        self._errors = (folder / "errors").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(torch.get_num_threads()), "01"[anew], *programs],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the programs give, by name; of equal names the last's. Raises ForceregError if they can't run."""
        self._number += 1
        np.savez(self._folder / f"{self._number}.in.npz", *(inputs[name] for name in self._names))
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: told below
            self._process.stdin.write(f"{self._number}\n")
            self._process.stdin.flush()
        if self._process.stdout.readline().strip() != str(self._number):
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["it ended without a word"]
            raise ForceregError(f"the program doesn't run in a process without forcereg: {lines[-1][:300]}")
        with np.load(self._folder / f"{self._number}.out.npz", allow_pickle=False) as file:
            return {str(name): file[str(index)] for index, name in enumerate(file["names"])}

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()


def blob_names(net: Net, outputs: Sequence[str]) -> dict[tuple[str, int], str]:
    """What each layer's tops are called: outputs by their blobs, else what writes a blob first; names are unlike."""
    called = titles(net.spec.layers)
    layers = [spec for spec, module in net.built if module is not None and spec.type != "Input"]
    places = [(called[id(spec)], index, top) for spec in layers for index, top in enumerate(spec.tops)]
    last = {top: (layer, index) for layer, index, top in places if top in outputs}
    names: dict[tuple[str, int], str] = {}
    taken = {*outputs, *net.inputs}
    for layer, index, top in places:
        name = top if top not in taken else f"{top}_{layer}"
        while name in taken:
            name += "_"
        # of an output only the last has its name, which is the file's own
        names[layer, index] = top if last.get(top) == (layer, index) else name
        taken.add(names[layer, index])
    return names


class _Comparison(Comparison):
    """Compares a program that runs alone; `inputs`: the shapes that it takes."""

    inputs: Mapping[str, Shape]

    def add(self, inputs: Mapping[str, Tensor], fed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        self.net.reset_state()  # as the program is loaded anew
        return super().add(inputs, fed)

    def takes(self, name: str, shape: tuple[int, ...]) -> bool:
        sizes = self.inputs[name]
        return len(sizes) == len(shape) and all(a == b or isinstance(a, str) for a, b in zip(sizes, shape, strict=True))


def _proved(done: Exported, request: Request, deployed: DeployedNet, ready: Ready, path: Path) -> Exported:
    """Runs the file, beside it one that gives all blobs, on random inputs and test batches. Raises ForceregError."""
    net, names = ready.net, blob_names(ready.net, ready.outputs)

    def answers(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {names[place]: top for place, top in recorded(net, inputs).items()}

    open_axes = {name: {0: "batch"} for name, shape in done.inputs.items() if "batch" in shape}
    with TemporaryDirectory(prefix="forcereg") as temp:
        folder = Path(temp)
        (folder / "file.pt2").symlink_to(path.resolve())
        (folder / "all.pt2").write_bytes(image(record(net, open_axes, answers), {}))
        runtime: Any = Alone(folder, net.inputs, bool(_carrying(net)), "all.pt2", "file.pt2")
        comparison = _Comparison(Written(None, (), names, net.spec.layers, 0), runtime, ready.plain, ready.folds)
        comparison.inputs = done.inputs
        with contextlib.closing(runtime):
            for seed in range(2 if open_axes else 1):
                sizes = {name: tuple(1 + seed if isinstance(size, str) else size for size in shape)
                         for name, shape in done.inputs.items()}  # fmt: skip
                fed = random_inputs(ready.plain, sizes, seed)
                comparison.add(fed, fed)
            scores = _scores(comparison, request, deployed) if request.tested else {}
    return replace(done, proof=comparison.prove(), scores=scores)


def _scores(comparison: Comparison, request: Request, deployed: DeployedNet) -> dict[str, tuple[float, float]]:
    assert request.tested is not None
    net, batches = request.tested(deployed)
    with contextlib.closing(net):
        return scored(comparison, net, int(request.options.get("iterations") or batches), {})
