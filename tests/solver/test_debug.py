"""debug_info: the right numbers, on display iterations and in tests, and nothing at all otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.solver.debug import Watch
from forcereg.solver.loop import Solver
from tests.solver.nets import TESTED, Recorder, batch, batches, regression, write_images, write_solver

READ_TWICE = """
name: "twice"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" relu_param { } }
layer { name: "half" type: "Power" bottom: "ip" top: "half" power_param { scale: 0.5 } }
layer { name: "sum" type: "Eltwise" bottom: "ip" bottom: "half" top: "sum" }
layer { name: "loss" type: "EuclideanLoss" bottom: "sum" bottom: "y" top: "loss" }
"""


def values(rows: list[dict[str, Any]]) -> dict[str, float]:
    """'Forward ip top ip' -> value."""
    return {" ".join(row[key] for key in ("direction", "layer", "kind", "blob")): row["value"] for row in rows}


def test_numbers(tmp_path: Path) -> None:
    """Against the same net by hand; of a blob that is read twice each reader has its own gradient."""
    solver, recorder = regression(tmp_path, "display: 1 debug_info: true", net=READ_TWICE)
    weight, bias = (blob.detach().clone().requires_grad_() for blob in solver.net.params["ip"])
    solver.step(1, batch())
    (event,) = recorder.of("debug")
    found = values(event.rows)

    x, y = batch()["x"], batch()["y"]
    before = x @ weight.T + bias
    ip = before.relu()
    first, second = ip.view_as(ip), ip.view_as(ip)
    half = first * 0.5
    total = second + half
    loss = (total - y).square().sum() / 8
    grads = torch.autograd.grad(loss, [weight, bias, before, first, second, half, total])

    def mean(tensor: Tensor) -> Any:
        return pytest.approx(float(tensor.detach().abs().mean()), rel=1e-5)

    split = "ip_relu_0_split"
    assert found["Forward ip top ip"] == mean(before)
    assert found["Forward relu top ip"] == mean(ip)
    assert found["Forward ip param 0"] == mean(weight)
    assert found["Forward sum top sum"] == mean(total)
    assert found["Forward loss top loss"] == mean(loss)
    assert found["Backward ip param 0"] == mean(grads[0])
    assert found["Backward ip param 1"] == mean(grads[1])
    assert found["Backward relu bottom ip"] == mean(grads[2])
    assert found["Backward half bottom " + split + "_0"] == mean(grads[3])
    assert found["Backward sum bottom " + split + "_1"] == mean(grads[4])
    assert found["Backward sum bottom half"] == mean(grads[5])
    assert found["Backward loss bottom sum"] == mean(grads[6])
    norms = [torch.cat([one.flatten() for one in pair]) for pair in ((weight, bias), grads[:2])]
    for p in (1, 2):
        assert event.norms[f"L{p}"] == pytest.approx([float(one.detach().norm(p)) for one in norms], rel=1e-5)


def test_only_on_display_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In between nothing watches at all."""
    solver, recorder = regression(tmp_path, "display: 2 debug_info: true")
    entered: list[int] = []
    enter = Watch.__enter__
    monkeypatch.setattr(Watch, "__enter__", lambda self: entered.append(solver.iter) or enter(self))
    solver.step(5, batches)
    assert entered == [event.iteration for event in recorder.of("debug")] == [0, 2, 4]
    assert solver.net.around is None
    plain, recorder = regression(tmp_path, "display: 1")
    plain.step(3, batches)
    assert (len(entered), recorder.of("debug")) == (3, [])


def test_watching_changes_nothing(tmp_path: Path) -> None:
    """But rounding: what is watched runs layer by layer."""
    write_images(tmp_path)
    told = []
    for extra in ("", "debug_info: true "):
        recorder = Recorder()
        path = write_solver(tmp_path, extra + "max_iter: 6 display: 1 test_iter: 2 test_interval: 3 momentum: 0.9")
        solver = Solver(path, observers=[recorder])
        solver.step(6)
        told.append([event.fields["loss"] for event in recorder.of("train")])
    assert told[0] == pytest.approx(told[1], rel=1e-5)


def test_every_sub_batch_and_every_batch_of_a_test(tmp_path: Path) -> None:
    """The net's own field asks for it too; gradients are what has added up."""
    extra = "display: 5 iter_size: 3 test_iter: 2 test_interval: 5"
    solver, recorder = regression(tmp_path, extra, net="debug_info: true " + TESTED)
    solver.step(1, batches)
    events = recorder.of("debug")
    assert [event.norms is None for event in events] == [True, True, False, False, False]
    assert all(row["direction"] == "Forward" for event in events[:2] for row in event.rows)
    diffs = [event.norms["L2"][1] for event in events[2:]]
    assert diffs[0] < diffs[2]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_gradients_of_mixed_precision_are_shown_unscaled(amp: str, tmp_path: Path) -> None:
    found = []
    for precision in (None, amp):
        solver, recorder = regression(tmp_path, "display: 1 debug_info: true", net=READ_TWICE, amp=precision)
        if solver.scale is not None:
            solver.scale.value.fill_(256.0)
        solver.step(1, batch())
        (event,) = recorder.of("debug")
        found.append((values(event.rows), event.norms))
    (full, full_norms), (low, low_norms) = found
    assert low == pytest.approx(full, rel=0.05)
    assert full.keys() == low.keys()
    for name in full_norms:
        assert low_norms[name] == pytest.approx(full_norms[name], rel=0.05)


def test_data_layers_are_shown_first(tmp_path: Path) -> None:
    write_images(tmp_path)
    recorder = Recorder()
    Solver(write_solver(tmp_path, "display: 1 debug_info: true"), observers=[recorder]).step(1)
    (event,) = recorder.of("debug")
    assert [f"{row['layer']} {row['blob']}" for row in event.rows[:3]] == ["data data", "data label", "conv conv"]
