"""What is compared with the recorded Caffe numbers, on any device. Needs no pytest.

Every check raises an AssertionError that says what is off; `folder` is an empty one for its files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forcereg.registry as registry
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema.text import parse_net, parse_solver
from forcereg.snapshot import net_message, write_model
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.system.events import Event
from tests.golden_files import Case

KNOWN_RANDOM = frozenset({"dropout_train"})
"""Layer cases of which only the random choice's kind can be judged."""


def array(tensor: Tensor) -> np.ndarray:
    """A copy of the values, on the host."""
    return tensor.detach().cpu().numpy().copy()


def near(found: float, expected: float, absolute: float, what: str) -> None:
    """Fails if the two are further apart than `absolute`."""
    assert abs(found - expected) <= absolute, f"{what}: {found!r}, expected {expected!r} +- {absolute:g}"


# -- layers: one forward and backward of a net


def close(found: Tensor, expected: np.ndarray, what: str) -> None:
    """Fails beyond 1e-5 of the largest value (at least 1) plus 1e-4 of each."""
    values = array(found)
    assert values.shape == expected.shape, what
    bound = 1e-5 * max(1.0, np.abs(expected).max(initial=0)) + 1e-4 * np.abs(expected)
    worst = (np.abs(values - expected) - bound).max(initial=-1)
    assert worst <= 0, f"{what}: off by {np.abs(values - expected).max()}"


def load_layer(case: Case, device: str = "cpu") -> tuple[Net, dict[str, Tensor], dict[str, Tensor]]:
    """The case's net with its parameters, its inputs, and the gradients at its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded BatchNorm nets give lr_mult as Caffe demands it
        net = load_net(case.attrs["prototxt"], phase=case.attrs["phase"], device=device)
    with case.open() as group:
        with torch.no_grad():
            for name, blobs in net.params.items():
                for index, blob in enumerate(blobs):
                    blob.copy_(torch.as_tensor(group[f"params/{name}/{index}"][()]))
        data = {key: dict(group[key].items()) if key in group else {} for key in ("inputs", "output_grads")}
        inputs = {name: torch.from_numpy(item[()]).to(device) for name, item in data["inputs"].items()}
        grads = {name: torch.as_tensor(item[()], device=device) for name, item in data["output_grads"].items()}
    return net, inputs, grads


def check_layer(case: Case, device: str = "cpu") -> None:
    """Outputs, inner blobs, gradients, changed parameters and what a second forward gives."""
    net, inputs, output_grads = load_layer(case, device)
    random = case.id in KNOWN_RANDOM
    forced = parse_net(case.attrs["prototxt"]).message.force_backward  # without it Caffe's inputs get no gradient
    for tensor in inputs.values():
        tensor.requires_grad_(bool(case.attrs["has_backward"] and forced))
    for blobs in net.params.values():
        for blob in blobs:
            if isinstance(blob, torch.nn.Parameter):
                blob.requires_grad_(True)  # the recorded nets ran with force_backward
    with case.open() as group:
        internal = list(group["internal"]) if "internal" in group else []
        inner = [name for name in internal if name in net.shapes]
        out = net(inputs, blobs=inner)
        assert sorted(group.get("outputs", ())) == sorted(net.spec.outputs)
        if not random:
            for name in net.spec.outputs:
                close(out[name], group[f"outputs/{name}"][()], name)
            for name in inner:
                close(out[name], group[f"internal/{name}"][()], name)
        if case.attrs["has_backward"]:
            _check_backward(case, group, net, inputs, out, output_grads)
        if "params_after" in group:
            for name, blobs in group["params_after"].items():
                for index in blobs:
                    close(net.params[name][int(index)], blobs[index][()], f"{name}/{index} after")
        if "outputs_2nd" in group:  # what layers carry over, with nothing reset in between
            again = net(inputs)
            for name in group["outputs_2nd"]:
                close(again[name], group[f"outputs_2nd/{name}"][()], f"{name} of the second forward")


def _check_backward(
    case: Case,
    group: Any,
    net: Net,
    inputs: Mapping[str, Tensor],
    out: Mapping[str, Tensor],
    output_grads: Mapping[str, Tensor],
) -> None:
    total = net.total_loss(out)
    for name, grad in output_grads.items():
        total = total + (out[name] * grad).sum()
    if total.requires_grad:
        total.backward()
    if case.id in KNOWN_RANDOM:
        return
    recorded = dict(group["input_grads"].items()) if "input_grads" in group else {}
    for name, tensor in inputs.items():
        if name in recorded:
            grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            close(grad, recorded[name][()], f"gradient of {name}")
        else:
            assert tensor.grad is None, f"{name} has a gradient, Caffe gives none"
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            if isinstance(blob, torch.nn.Parameter) and f"param_grads/{name}/{index}" in group:
                close(blob.grad, group[f"param_grads/{name}/{index}"][()], f"gradient of {name}/{index}")


# -- solvers: trajectories, updates, going on from Caffe's snapshots


def runs_here(case: Case) -> bool:
    """Whether the case's solver type exists."""
    return parse_solver(case.attrs["solver"]).message.type in registry.solver_type


def build(case: Case, folder: Path, solver_text: str, device: str | None = None) -> Solver:
    """The case's solver with its initial parameters."""
    (folder / "net.prototxt").write_text(case.attrs.get("net_with_input_layers", case.attrs["net"]))
    (folder / "solver.prototxt").write_text(solver_text)
    solver = Solver(folder / "solver.prototxt", device=device, observers=[lambda event: None])
    set_params(solver, case.tree("params_init"))
    return solver


def set_params(solver: Solver, values: Mapping[str, np.ndarray]) -> None:
    """Copies `layer/index` arrays into the net."""
    with torch.no_grad():
        for name, blobs in solver.net.params.items():
            for index, blob in enumerate(blobs):
                blob.copy_(torch.from_numpy(values[f"{name}/{index}"]))


def feeder(case: Case) -> Callable[[int, int], dict[str, Tensor]]:
    """The recorded inputs of each sub-iteration."""
    inputs = {name: torch.from_numpy(values) for name, values in case.tree("inputs").items()}
    return lambda iteration, sub: {name: values[iteration, sub] for name, values in inputs.items()}


def params_of(solver: Solver) -> dict[str, np.ndarray]:
    """Copies of all blobs as `layer/index`."""
    return {
        f"{name}/{index}": array(blob) for name, blobs in solver.net.params.items() for index, blob in enumerate(blobs)
    }


def _equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bound: float) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=bound, err_msg=name)


def check_trajectory(case: Case, folder: Path, device: str | None = None) -> None:
    """Rates, losses and parameters after every iteration, the history and step at the end."""
    solver = build(case, folder, case.attrs["solver"], device)
    feed = feeder(case)
    bound = 5e-5 if "BatchNorm" in case.attrs["net"] else 1e-5
    for iteration in range(int(case.attrs["iters"])):
        rate = float(case.load("lr")[iteration])
        near(solver.lr, rate, 1e-6 * abs(rate), "rate")
        loss = float(solver.step(1, feed))
        near(loss, case.load("loss")[iteration], 2e-5 if bound == 1e-5 else 5e-5, f"loss of iteration {iteration}")
        _equal(params_of(solver), case.tree(f"iter_{iteration + 1:04d}/params"), bound)
    assert solver.current_step == case.attrs["current_step"]
    names = [f"{one.layer}/{one.index}" for one in solver.net.learnable]
    assert names == case.json("learnable_params")
    history = {f"history/{index}": np.asarray(blob) for index, blob in enumerate(solver.updater.saved_history())}
    _equal(history, {name: case.load(name) for name in history}, bound)


def force_bound(case: Case, update: np.ndarray) -> float:
    """Float32 knows the distance of rows just above the limit to about 1e-3 only."""
    if "rows_near_above" in case.id:
        return 2e-3 * float(np.abs(update).max())
    return 2e-5 * float(np.abs(update).max(initial=0)) + 1e-6


def check_force(case: Case, folder: Path, device: str | None = None) -> None:
    """What each iteration subtracts from the parameters."""
    solver = build(case, folder, case.attrs["solver"], device)
    feed = feeder(case)
    for iteration in range(int(case.attrs["iters"])):
        before = params_of(solver)
        solver.step(1, feed)
        after = params_of(solver)
        recorded = case.tree(f"iter_{iteration + 1:04d}/update")
        if not recorded:
            recorded = {"l/0": case.load("params_init/l/0") - case.load("iter_0001/params/l/0")}
        for name, expected in recorded.items():
            _equal({name: before[name] - after[name]}, {name: expected}, force_bound(case, expected))
        # the next iteration starts from Caffe's own numbers, so that one iteration is judged at a time
        if case.attrs["kind"] == "combo":
            set_params(solver, case.tree(f"iter_{iteration + 1:04d}/params"))


def resumed(case: Case, folder: Path, end: str, device: str | None = None) -> Solver:
    """A solver restored from the case's snapshot, whose two files end in `end`, that writes such ones itself."""
    start = int(case.attrs["iter_snapshot"])
    for kind in ("caffemodel", "solverstate"):
        name = f"snap_iter_{start}.{kind}{end}"
        (folder / name).write_bytes(case.file(name))
    solver = build(case, folder, case.attrs["solver_hdf5" if end else "solver_binaryproto"], device)
    solver.restore(folder / f"snap_iter_{start}.solverstate{end}")
    return solver


def check_resume(case: Case, folder: Path, end: str, device: str | None = None) -> None:
    """A state that Caffe wrote (".h5" or "") continues with Caffe's numbers."""
    solver = resumed(case, folder, end, device)
    start = int(case.attrs["iter_snapshot"])
    assert (solver.iter, solver.current_step) == (start, case.attrs["current_step"])
    feed = feeder(case)
    for iteration in range(start, int(case.attrs["iters"])):
        loss = float(solver.step(1, feed))
        near(loss, case.load("loss")[iteration], 5e-5, f"loss of iteration {iteration}")
        _equal(params_of(solver), case.tree(f"iter_{iteration + 1:04d}/params"), 5e-5)


# -- structured sparsity


def _same_zeros(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name] == 0, values == 0, err_msg=f"zeros of {name}")


def _blobs(values: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """layer -> index -> array, of arrays by "layer/index"."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, array_ in values.items():
        layer, _, index = name.rpartition("/")
        found.setdefault(layer, {})[int(index)] = array_
    return found


def sparse_solver(case: Case, folder: Path, device: str | None = None) -> Solver:
    """The case's solver; of one that asks for no zeros with those that the branch always makes."""
    text, net = f"{case.attrs['solver']}\nsnapshot_diff: true", case.attrs["net"]
    asking = ("regularization_type", "decay_proto", "connectivity_mode")
    if "block_group_decay" not in text and not any(word in net for word in asking):
        text += "\nprune_threshold: 1e-4"
    for name, values in case.tree("decay_files").items():
        (folder / name).write_bytes(values.tobytes())
    return build(case, folder, text, device)


def check_sparse(case: Case, folder: Path, device: str | None = None, ending: str = ".caffemodel") -> None:
    """Parameters with their zeros after every iteration, masks, history, losses and all that a display prints."""
    solver = sparse_solver(case, folder, device)
    if case.attrs["kind"] == "mask":
        message = None if ending.endswith(".h5") else net_message(solver.net.spec)
        write_model(folder / f"init{ending}", _blobs(case.tree("params_init")), None, {}, message)
        solver.load_weights(folder / f"init{ending}")
        loaded = case.tree("params_loaded")
        _equal(params_of(solver), loaded, 0)
    feed, iters = feeder(case), int(case.attrs["iters"])
    for iteration in range(iters):
        if iteration == case.attrs.get("resume_at"):
            state = solver.snapshot().with_suffix(".solverstate")
            solver = sparse_solver(case, folder, device)
            solver.restore(state, masks="rebuild")
            _equal(params_of(solver), case.tree("params_resumed"), 1e-5)
            _same_zeros(params_of(solver), case.tree("params_resumed"))
        _check_sparse_step(case, solver, iteration, feed)
    history = {f"history/{index}": np.asarray(blob) for index, blob in enumerate(solver.updater.saved_history())}
    _equal(history, {name: case.load(name) for name in history}, 1e-5)


def _check_sparse_step(case: Case, solver: Solver, iteration: int, feed: Any) -> None:
    events: list[Event] = []
    solver.observers = [events.append]
    loss = float(solver.step(1, feed))
    near(loss, case.load("loss")[iteration], 2e-5, f"loss of iteration {iteration}")
    expected = case.tree(f"iter_{iteration + 1:04d}/params")
    _equal(params_of(solver), expected, 1e-5)
    _same_zeros(params_of(solver), expected)
    updates = {f"{layer}/{index}": array(one) for (layer, index), one in solver.updater.last_update().items()}
    for name, values in case.tree(f"iter_{iteration + 1:04d}/update").items():
        _equal({name: updates[solver.net.shared.get(name, name)]}, {name: values}, 1e-5)
    if iteration == 0:
        masks = {name: array(mask) for name, mask in solver.masks.items()}
        assert masks.keys() == case.tree("mask").keys()
        _equal(masks, case.tree("mask"), 0)
        _check_sparse_log(case, events)
    (told,) = [event for event in events if event.kind == "sparsity"]
    near(told.regularization, case.load("reg_term_log")[iteration], 2e-5 * abs(told.regularization) + 1e-9, "term")
    near(told.total, case.load("total_log")[iteration], 2e-5 * abs(told.total), "term and loss")
    for kind in ("element", "column", "row"):
        percents = [layer[kind] for layer in told.layers]
        np.testing.assert_allclose(percents, case.load(f"sparsity/{kind}")[iteration], rtol=0, atol=1e-4)
    blocks = [one["percent"] for layer in told.layers for one in layer["blocks"]]
    if blocks:
        np.testing.assert_allclose(blocks, case.load("sparsity/block")[iteration].ravel(), rtol=0, atol=1e-4)


def _check_sparse_log(case: Case, events: list[Event]) -> None:
    """The lines of the first display, behind its rate, are the branch's own."""
    lines: list[str] = []
    log = GlogWriter()
    log.write = lines.append
    for event in events:
        if event.kind == "sparsity":
            log(event)
    found = "".join(f"{line.partition('] ')[2]}\n" for line in lines)
    text = "".join(line for line in case.attrs["log"].splitlines(True) if not line.startswith("Gradient clipping"))
    assert found == text[text.index("    Element Sparsity") :]


def check_squeezed(case: Case, device: str = "cpu") -> None:
    """A net's outputs with each conv_mode."""
    for net, group in (("net", "gemm"), ("net_ccnmm", "ccnmm")):
        made = load_net(case.attrs[net], phase="TEST", device=device)
        values = case.tree("params")
        with torch.no_grad():
            for name, blobs in made.params.items():
                for index, blob in enumerate(blobs):
                    blob.copy_(torch.from_numpy(values[f"{name}/{index}"]))
            inputs = {name: torch.from_numpy(one).to(device) for name, one in case.tree("inputs").items()}
            expected = case.tree(group)
            found = made(inputs, blobs=[name for name in expected if name not in made.spec.outputs])
        _equal({name: array(one) for name, one in found.items()}, expected, 1e-5)


# -- the README's LeNet, 100 iterations on MNIST


def check_lenet(case: Case, root: Path, device: str) -> None:
    """Losses, weights and the score follow Caffe's; `root` has MNIST's sets under examples/mnist."""
    (root / "examples/mnist/lenet_train_test_force.prototxt").write_text(case.attrs["net"])
    path = root / "solver.prototxt"
    path.write_text(case.attrs["solver"])
    solver = Solver(path, device=device, observers=[lambda event: None])
    set_params(solver, case.tree("params_init"))
    losses = []
    for iteration in range(1, 101):
        losses.append(float(solver.step(1)))
        if iteration in (1, 20, 100):
            _check_lenet_params(case, solver, iteration)
    expected = case.load("loss")
    np.testing.assert_allclose(losses[:20], expected[:20], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses[20:], expected[20:], rtol=0, atol=1e-3 if device == "cpu" else 6e-3)
    score = solver.test(0)
    near(score.mean("accuracy"), float(case.load("test_accuracy")), 0.003, "test accuracy")
    near(score.mean("loss"), float(case.load("test_loss")), 0.01, "test loss")


def _check_lenet_params(case: Case, solver: Solver, iteration: int) -> None:
    early = iteration <= 20
    folder = f"iter_{iteration:04d}"
    for name, blobs in solver.net.params.items():
        for index, blob in enumerate(blobs):
            norm = float(case.load(f"{folder}/norms/{name}/{index}"))
            found = float(blob.detach().double().norm())
            near(found, norm, (1e-5 if early else 5e-3) * norm, f"norm of {name}/{index} after {iteration}")
    _equal(params_of(solver), case.tree(f"{folder}/params"), 1e-5 if early else 2e-3)
