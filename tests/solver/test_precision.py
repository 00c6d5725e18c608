"""--amp: what computes in the lower precision, what stays float32, and the loss scale that float16 needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers import Layer
from forcereg.schema.spec import LayerSpec
from forcereg.solver.loop import Solver
from forcereg.solver.precision import CARRIERS, PRODUCTS, LossScale
from tests.solver.nets import TESTED, Recorder, batches, blobs_of, regression, write_images, write_solver
from tests.solver.test_resume import EXTRA, assert_same, told

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

ALL_KINDS = """
name: "kinds"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 }
  shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 8 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "scaled" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "scaled" top: "scaled" }
layer { name: "pool" type: "Pooling" bottom: "scaled" top: "pool" top: "mask" pooling_param { kernel_size: 2
  stride: 2 } }
layer { name: "silence" type: "Silence" bottom: "mask" }
layer { name: "lrn" type: "LRN" bottom: "pool" top: "lrn" }
layer { name: "up" type: "Deconvolution" bottom: "lrn" top: "up" convolution_param { num_output: 4 kernel_size: 2
  weight_filler { type: "xavier" } } }
layer { name: "ave" type: "Pooling" bottom: "up" top: "ave" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "slice" type: "Slice" bottom: "ave" top: "a" top: "b" }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "a" top: "cat" }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" dropout_param { dropout_ratio: 0 } }
layer { name: "flat" type: "Flatten" bottom: "cat" top: "flat" }
layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "size" type: "InnerProduct" bottom: "flat" top: "size" loss_weight: 0.001
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }
"""


def kinds_batch(iteration: int, sub: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(iteration)
    return {"x": torch.randn(4, 2, 8, 8, generator=random), "y": torch.randint(3, (4,), generator=random).float()}


def kinds(root: Path, amp: str | None, extra: str = "") -> Solver:
    extra = f"momentum: 0.9 weight_decay: 0.001 snapshot_format: HDF5 {extra}"
    return regression(root, extra, net=ALL_KINDS, amp=amp)[0]


@pytest.mark.parametrize("amp", DTYPES)
def test_what_computes_in_which_precision(amp: str, tmp_path: Path) -> None:
    solver = kinds(tmp_path, amp)
    seen: dict[str, tuple[set[torch.dtype], set[torch.dtype]]] = {}
    around = solver.net.around

    def watched(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> object:
        tops = around(spec, module, bottoms)
        several = (tops,) if isinstance(tops, Tensor) else tops
        seen[spec.name] = ({top.dtype for top in several}, {bottom.dtype for bottom in bottoms})
        return tops

    solver.net.around = watched
    solver.step(1, kinds_batch)
    low, full = {DTYPES[amp]}, {torch.float32}
    found = {name: tops for name, (tops, _) in seen.items()}
    for name in ("conv", "bn", "up", "ave", "slice", "ip"):
        assert found[name] == low, name
    # weights of their own, sums over many values, counts, and what is part of the loss
    for name in ("scale", "relu", "pool", "lrn", "sum", "size", "loss"):
        assert found[name] == full, name
    for name, blobs in solver.net.params.items():
        assert all(blob.dtype == torch.float32 for blob in blobs), name
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in solver.updater.weights)
    assert all(tensor.dtype == torch.float32 for slot in solver.updater.history for tensor in slot)


@pytest.mark.parametrize(("amp", "near"), [("bf16", 0.02), ("fp16", 0.003)])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_training_stays_near_full_precision(amp: str, near: float, kind: str, tmp_path: Path) -> None:
    """Twenty iterations of every kind of layer; what float16 leaves out is not noticed here."""
    rate = "base_lr: 0.01 " if kind == "SGD" else "base_lr: 0.001 "
    losses = {}
    for precision in (None, amp):
        torch.manual_seed(1)
        solver = kinds(tmp_path, precision, f'{rate} type: "{kind}" clip_gradients: 5')
        if solver.scale is not None:
            solver.scale.value.fill_(256.0)
        losses[precision] = torch.stack([solver.step(1, kinds_batch).detach().clone() for _ in range(20)])
    assert not torch.equal(losses[None], losses[amp])
    torch.testing.assert_close(losses[amp], losses[None], rtol=0, atol=near)


def test_tests_are_float32(tmp_path: Path) -> None:
    """The same weights have the same score, whatever precision trains them."""
    write_images(tmp_path)
    scores = []
    for amp in (None, "bf16", "fp16"):
        path = write_solver(tmp_path, "test_iter: 2 test_interval: 1 max_iter: 0 snapshot_after_train: false")
        recorder = Recorder()
        Solver(path, observers=[recorder], amp=amp).test_all()
        scores += [event.outputs for event in recorder.of("test")]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("amp", DTYPES)
def test_resume_is_bit_for_bit(amp: str, tmp_path: Path) -> None:
    write_images(tmp_path)

    def train(prefix: str, resume: Path | None = None) -> Recorder:
        recorder = Recorder()
        extra = EXTRA.replace('"s"', f'"{prefix}"') + "6"
        solver = Solver(write_solver(tmp_path, extra), observers=[recorder], amp=amp)
        if resume is not None:
            solver.restore(resume)
        solver.solve()
        return recorder

    whole = train("s")
    resumed = train("again", tmp_path / "s_iter_6.solverstate.h5")
    assert told(resumed, 6) == told(whole, 6)
    assert [e.fields for e in resumed.of("scale")] == [e.fields for e in whole.of("scale") if e.iteration >= 6]
    for kind in ("caffemodel", "solverstate"):
        assert_same(tmp_path / f"s_iter_14.{kind}.h5", tmp_path / f"again_iter_14.{kind}.h5")


def test_the_log_says_what_runs_where(tmp_path: Path) -> None:
    for amp in DTYPES:
        solver, recorder = regression(tmp_path, "max_iter: 0 snapshot_after_train: false", amp=amp)
        solver.solve(batches)
        (note,) = [event.text for event in recorder.of("note")]
        assert re.fullmatch(
            r"Mixed precision: Convolution, Deconvolution, InnerProduct compute in (b?float16), weights, losses, "
            r"updates and tests in float32(; the loss is scaled, by 65536 at first)?",
            note,
        )
        assert any("use --amp bf16" in text for text in recorder.texts()) == (amp == "fp16")


def test_no_layer_type_is_named_in_vain() -> None:
    from forcereg import registry

    assert set(registry.layer) >= PRODUCTS | CARRIERS
    assert not PRODUCTS & CARRIERS


def test_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match="unknown precision 'fp8'; expected bf16 or fp16"):
        regression(tmp_path, amp="fp8")


# -- the loss scale


def test_gradients_come_unscaled_before_clipping(tmp_path: Path) -> None:
    """With exact powers of two as scale, all that differs is rounding of float16 products."""
    after = []
    for scale in (1.0, 1024.0):
        solver, _ = regression(tmp_path, "clip_gradients: 0.1 base_lr: 1 iter_size: 2", amp="fp16")
        solver.scale.value.fill_(scale)
        before = blobs_of(solver)
        solver.step(1, batches)
        after.append(torch.cat([(blob - before[name]).flatten() for name, blob in blobs_of(solver).items()]))
    torch.testing.assert_close(after[0], after[1], rtol=1e-2, atol=1e-5)
    # the clipped sum of two sub-batches, halved
    assert float(after[1].norm()) == pytest.approx(0.05, rel=1e-3)


def huge(at: int, size: float = 1e5) -> object:
    """Batches of which number `at` makes gradients that float16 doesn't hold."""

    def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
        scale = size if iteration == at else 1.0
        return {name: scale * blob for name, blob in batches(iteration, sub).items()}

    return inputs


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
def test_step_that_overflows_is_left_out(kind: str, tmp_path: Path) -> None:
    """Weights and history stay as they were, the scale is halved, and the run goes on."""
    extra = f'type: "{kind}" momentum: 0.9 base_lr: 0.001 display: 1 weight_decay: 0.1'
    solver, recorder = regression(tmp_path, extra, amp="fp16")
    solver.scale.value.fill_(8.0)
    solver.step(2, huge(2))
    weights, history = blobs_of(solver), [[t.clone() for t in slot] for slot in solver.updater.history]
    solver.step(1, huge(2))
    assert all(torch.equal(blob, weights[name]) for name, blob in blobs_of(solver).items())
    for slot, kept in zip(solver.updater.history, history, strict=True):
        assert all(torch.equal(tensor, before) for tensor, before in zip(slot, kept, strict=True))
    solver.step(1, huge(2))
    assert not torch.equal(blobs_of(solver)["ip/0"], weights["ip/0"])
    told = [(e.iteration, e.scale, e.skipped) for e in recorder.of("scale")]
    assert told == [(0, 8, 0), (1, 8, 0), (2, 8, 0), (3, 4, 1)]
    assert solver.scale.state_dict() == {"scale": 4.0, "good": 1, "skipped": 1}


def test_scale_grows_after_many_good_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "INTERVAL", 3)
    solver, _ = regression(tmp_path, amp="fp16")
    solver.scale.value.fill_(4.0)
    scales = []
    for _ in range(7):
        solver.step(1, batches)
        scales.append(float(solver.scale.value))
    assert scales == [4, 4, 8, 8, 8, 16, 16]


def test_run_that_diverges_ends_all_the_same(tmp_path: Path) -> None:
    """At scale 1 there is nothing left to halve."""
    solver, _ = regression(tmp_path, "max_iter: 100 snapshot_after_train: false", amp="fp16")
    solver.scale.value.fill_(4.0)
    with pytest.raises(ForceregError, match="the loss or a gradient is not finite at iteration 5; no update"):
        solver.solve(lambda iteration, sub: huge(iteration if iteration >= 3 else -1)(iteration, sub))
    assert float(solver.scale.value) < 1
    assert solver.scale.state_dict()["skipped"] == 3


@pytest.mark.parametrize("steps", ["good", "left-out", "diverged"])
def test_on_a_device_the_same_without_reading_it(steps: str, tmp_path: Path) -> None:
    """The path of a GPU, taken on the CPU: flags instead of branches."""
    results = []
    for on_host in (True, False):
        solver, _ = regression(tmp_path, "momentum: 0.9 weight_decay: 0.01", amp="fp16")
        solver.updater.on_host = on_host
        solver.scale.value.fill_(2.0)
        bad = {"good": (), "left-out": (1,), "diverged": (1, 2)}[steps]
        for iteration in range(3):
            solver._inputs = huge(iteration if iteration in bad else -1)
            solver._iterate(False)
            solver.iter += 1
        results.append(
            (blobs_of(solver), solver.updater.first_bad(), solver.scale.state_dict(), solver.updater.history)
        )
    (weights, first_bad, scale, history), (weights_, first_bad_, scale_, history_) = results
    assert (first_bad, scale) == (first_bad_, scale_)
    assert first_bad == (2 if steps == "diverged" else -1)
    for name in weights:
        torch.testing.assert_close(weights[name], weights_[name], rtol=1e-6, atol=1e-7)
    if steps != "diverged":
        torch.testing.assert_close(history[0], history_[0], rtol=1e-6, atol=1e-7)


def test_whole_run_in_each_precision(tmp_path: Path) -> None:
    """A net that learns, with tests of its own."""
    for amp in DTYPES:
        solver, recorder = regression(
            tmp_path, "base_lr: 0.05 max_iter: 30 test_iter: 1 test_interval: 30 snapshot_after_train: false",
            net=TESTED, amp=amp,
        )  # fmt: skip
        solver.solve(lambda iteration, sub: batches(0, 0))
        first, last = [event.outputs[0].value for event in recorder.of("test")]
        assert last < first / 2
