"""Training under structured sparsity against a small numpy model of it, written from the SSL branch's rules alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from forcereg.snapshot import write_model
from tests.solver.nets import blobs_of, regression
from tests.solver.sparsity.nets import convs
from tests.solver.sparsity.test_step import inputs

RATE, BLOCKS, ROWS, COLUMNS = 0.05, 0.02, 0.01, 0.03
"""base_lr and the three group lassos' decays."""
STEPS = 3
Blobs = dict[str, np.ndarray]


def gradients(blobs: Blobs, iteration: int, subs: int, group: int) -> Blobs:
    """Of the summed losses of an iteration's batches, in float64."""
    made = {name: torch.tensor(blob, dtype=torch.float64, requires_grad=True) for name, blob in blobs.items()}
    for sub in range(subs):
        fed = {name: value.double() for name, value in inputs(iteration, sub).items()}
        hidden = functional.conv2d(fed["x"], made["c1/0"], made["c1/1"], groups=group).tanh().flatten(1)
        out = functional.linear(hidden, made["ip1/0"], made["ip1/1"])
        (((out - fed["y"]) ** 2).sum() / (2 * len(out))).backward()
    return {name: value.grad.numpy() for name, value in made.items() if value.grad is not None}


def lasso(w: np.ndarray, x: int, y: int, decay: float) -> tuple[np.ndarray, float]:
    """Gradient and value of group lasso on blocks of x columns and y rows."""
    matrix = w.reshape(len(w), -1)
    grad, value = np.zeros_like(matrix), 0.0
    for top in range(0, matrix.shape[0], y):
        for left in range(0, matrix.shape[1], x):
            part = matrix[top : top + y, left : left + x]
            norm = np.sqrt((part**2).sum())
            value += decay * norm
            if norm > 0:
                grad[top : top + y, left : left + x] = decay * part / norm
    return grad.reshape(w.shape), value


def update(kind: str, g: np.ndarray, history: list[np.ndarray], lr: float, m: float, t: int) -> np.ndarray:
    """What a solver type subtracts; history is changed."""
    if kind in ("SGD", "Nesterov"):
        before = history[0].copy()
        history[0][...] = m * before + lr * g
        return history[0].copy() if kind == "SGD" else (1 + m) * history[0] - m * before
    if kind == "AdaGrad":
        history[0] += g**2
        return lr * g / (np.sqrt(history[0]) + 1e-8)
    if kind == "RMSProp":
        history[0][...] = 0.98 * history[0] + 0.02 * g**2
        return lr * g / (np.sqrt(history[0]) + 1e-8)
    if kind == "AdaDelta":
        history[0][...] = m * history[0] + (1 - m) * g**2
        found = g * np.sqrt((history[1] + 1e-8) / (history[0] + 1e-8))
        history[1][...] = m * history[1] + (1 - m) * found**2
        return lr * found
    history[0][...] = m * history[0] + (1 - m) * g
    history[1][...] = 0.999 * history[1] + 0.001 * g**2
    return lr * np.sqrt(1 - 0.999**t) / (1 - m**t) * history[0] / (np.sqrt(history[1]) + 1e-8)


def mask(w: np.ndarray, mode: str, group: int) -> np.ndarray:
    """1 where a connectivity_mode leaves a loaded weight free."""
    if mode == "ELTWISE":
        return (w != 0).astype(float)
    free = np.ones_like(w)
    for one, part in zip(np.split(free, group), np.split(w, group), strict=True) if mode else ():
        dead = (part.reshape(len(part), -1) == 0).all(0).reshape(part.shape[1:])
        one[:, dead] = 0
        one[(part.reshape(len(part), -1) == 0).all(1)] = 0
    return free


def masks_of(case: dict[str, Any], blobs: Blobs) -> Blobs:
    """Those of weights that were loaded: biases are free."""
    found = {name: np.ones_like(blob) for name, blob in blobs.items()}
    for layer, own in case["params"].items():
        name = f"{layer}/0"
        found[name] = mask(blobs[name], own["mode"], case["group"] if layer == "c1" else 1)
    return found


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """Settings of a run, and of the parameters of both layers."""
    group = draw(st.sampled_from([1, 2]))
    sizes = {"c1": (4, 36 // group), "ip1": (2, 16)}
    params = {}
    for layer, (rows, columns) in sizes.items():
        divisors = [[n for n in range(1, size + 1) if size % n == 0] for size in (columns, rows)]
        spec = st.tuples(*map(st.sampled_from, divisors), st.sampled_from([0, 0.5, 1, -0.25]))
        params[layer] = {
            "blocks": draw(st.lists(spec, max_size=3)),
            "rows": draw(st.sampled_from([0, 0.5])), "columns": draw(st.sampled_from([0, 2])),
            "kind": draw(st.sampled_from(["", "L1", "L2"])), "decay": draw(st.sampled_from([0, 1, 2])),
            "lr": draw(st.sampled_from([0, 1, 2])), "mode": draw(st.sampled_from(["", "", "ELTWISE", "GRPWISE"])),
        }  # fmt: skip
    return {
        "type": draw(st.sampled_from(["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])),
        "momentum": draw(st.sampled_from([0.5, 0.9])), "decay": draw(st.sampled_from([0, 0.01])),
        "kind": draw(st.sampled_from(["L1", "L2"])), "clip": draw(st.sampled_from([-1, 0.05])),
        "subs": draw(st.sampled_from([1, 2])), "threshold": draw(st.sampled_from([None, 0, 0.01])),
        "resume": draw(st.sampled_from(["", "HDF5", "BINARYPROTO"])), "group": group, "params": params,
        "seed": draw(st.integers(0, 99)),
    }  # fmt: skip


def texts(case: dict[str, Any]) -> tuple[str, str]:
    """A solver's fields and its net."""
    params, modes = [], []
    for own in case["params"].values():
        blocks = [
            f"block_group_lasso {{ xdimen: {x} ydimen: {y} block_decay_mult: {mult} }}" for x, y, mult in own["blocks"]
        ]
        kind = f'regularization_type: "{own["kind"]}"' if own["kind"] else ""
        mults = f"lr_mult: {own['lr']} decay_mult: {own['decay']} breadth_decay_mult: {own['rows']}"
        params.append(f"{mults} kernel_shape_decay_mult: {own['columns']} {kind} {' '.join(blocks)}")
        modes.append(f"connectivity_mode: DISCONNECTED_{own['mode']}" if own["mode"] else "")
    momentum = f"momentum: {case['momentum']}" if case["type"] not in ("AdaGrad", "RMSProp") else ""
    rms = "rms_decay: 0.98" if case["type"] == "RMSProp" else ""
    threshold = "" if case["threshold"] is None else f"prune_threshold: {case['threshold']}"
    fields = (
        f'type: "{case["type"]}" {momentum} {rms} {threshold} weight_decay: {case["decay"]} display: 1 base_lr: {RATE} '
        f'lr_policy: "fixed" regularization_type: "{case["kind"]}" clip_gradients: {case["clip"]} '
        f"iter_size: {case['subs']} block_group_decay: {BLOCKS} breadth_decay: {ROWS} kernel_shape_decay: {COLUMNS} "
        f"random_seed: {case['seed']} snapshot_prefix: 's' snapshot_format: {case['resume'] or 'HDF5'}"
    )
    return fields, convs(*params, *modes, group=case["group"])


def limit_of(case: dict[str, Any]) -> float:
    """The threshold below which weights become zero."""
    if case["threshold"] is not None:
        return float(case["threshold"])
    every = case["params"].values()
    asked = any(
        own["kind"] or own["mode"] or own["rows"] or own["columns"] or any(mult for *_, mult in own["blocks"])
        for own in every
    )
    return 1e-4 if asked else 0.0


def stepped(
    case: dict[str, Any], blobs: Blobs, history: dict[str, list[np.ndarray]], masks: Blobs, at: int
) -> tuple[Blobs, float]:
    """The weights behind iteration `at`, before the zeroing, and the regularization term of those in front of it."""
    raw, made, total = gradients(blobs, at, case["subs"], case["group"]), {}, 0.0
    frozen = [name for name in raw if not case["params"][name[:-2]]["lr"] and name.endswith("/0")]
    live = {name: grad for name, grad in raw.items() if name not in frozen}
    norm = np.sqrt(sum((grad**2).sum() for grad in live.values()))
    scale = case["clip"] / norm if 0 < case["clip"] < norm else 1.0
    for name, w in blobs.items():
        layer, first = name[:-2], name.endswith("/0")
        own = (
            case["params"][layer] if first else {"blocks": [], "rows": 0, "columns": 0, "kind": "", "decay": 1, "lr": 1}
        )
        grad = live.get(name, np.zeros_like(w)) * scale / case["subs"]
        local, kind = case["decay"] * own["decay"], own["kind"] or case["kind"]
        grad = grad + local * (w if kind == "L2" else np.sign(w))
        total += local * (float((w**2).sum()) / 2 if kind == "L2" else float(np.abs(w).sum()))
        columns = w[0].size if w.ndim > 1 else 1
        high = len(w) // (case["group"] if layer == "c1" else 1)
        terms = [(columns, 1, ROWS * own["rows"]), (1, high, COLUMNS * own["columns"])]
        for x, y, decay in [*terms, *((x, y, BLOCKS * mult) for x, y, mult in own["blocks"])]:
            term, value = lasso(w, x, y, decay)
            grad, total = grad + term, total + value
        step = update(case["type"], grad, history[name], RATE * own["lr"], case["momentum"], at + 1)
        made[name] = w - step * masks[name]
    return made, total


@given(case=cases())
def test_steps_are_those_of_the_model(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    fields, net = texts(case)
    folder: Path = tmp_path_factory.mktemp("model")
    solver, recorder = regression(folder, fields, net=net)
    limit = limit_of(case)
    # what divides by the size of a gradient magnifies the rounding of a small one
    near = 5e-6 if case["type"] in ("SGD", "Nesterov") else 5e-5
    random = np.random.default_rng(case["seed"])
    first = {name: blob.numpy() for name, blob in blobs_of(solver).items()}
    for blob in first.values():
        blob[random.random(blob.shape) < 0.3] = 0
    first["c1/0"][1] = first["ip1/0"][:, 3] = 0
    layers = {layer: {index: first[f"{layer}/{index}"] for index in (0, 1)} for layer in case["params"]}
    write_model(folder / "first.caffemodel.h5", layers, None, {}, None)
    solver.load_weights(folder / "first.caffemodel.h5")
    blobs: Blobs = {name: blob.numpy().astype(np.float64) for name, blob in blobs_of(solver).items()}
    masks = masks_of(case, blobs)
    history = {name: [np.zeros_like(blob), np.zeros_like(blob)] for name, blob in blobs.items()}
    for at in range(STEPS):
        if case["resume"] and at == STEPS - 1:
            state = str(solver.snapshot()).replace("caffemodel", "solverstate")
            solver, recorder = regression(folder, fields, net=net)
            solver.restore(state, masks="rebuild")
            masks = masks_of(case, blobs)
        expected, total = stepped(case, blobs, history, masks, at)
        solver.step(1, inputs)
        (told,) = (event for event in recorder.of("sparsity") if event.iteration == at)
        assert told.regularization == pytest.approx(total, rel=1e-5, abs=1e-7)
        for name, blob in blobs_of(solver).items():
            found = blob.numpy().astype(np.float64)
            cut = np.where(np.abs(expected[name]) < np.float32(limit), 0, expected[name])
            # at the threshold float32 may round either way
            sure = np.abs(np.abs(expected[name]) - limit) > near
            np.testing.assert_allclose(found[sure], cut[sure], rtol=0, atol=near, err_msg=f"{name} at {at}")
            if limit:
                assert ((found == 0) == (cut == 0))[sure].all(), (name, at)
            blobs[name] = found
