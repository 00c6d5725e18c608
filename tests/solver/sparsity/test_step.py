"""What the solver does by the fields of structured sparsity, and what it refuses or warns of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import forcereg
from forcereg.errors import ForceregError
from forcereg.schema import BlobProto
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.solver.graphs import both, trained
from tests.solver.nets import REGRESSION, Recorder, blobs_of, regression, write_solver
from tests.solver.sparsity.nets import COLUMNS, ELTWISE, ROWS, convs


def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(10 * iteration + sub)
    return {"x": torch.randn(4, 4, 4, 4, generator=random), "y": torch.randn(4, 2, generator=random)}


def run(root: Path, extra: str, net: str, steps: int = 5) -> tuple[Solver, Recorder]:
    solver, recorder = regression(root, extra, net=net)
    solver.step(steps, inputs)
    return solver, recorder


# -- group lasso


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_rows_and_columns_are_blocks(group: int, kind: str, tmp_path: Path) -> None:
    """breadth_decay and kernel_shape_decay, which the branch has on GPUs only; columns are each kernel group's own."""
    k = 36 // group
    fields = "breadth_decay_mult: 2 kernel_shape_decay_mult: 0.5"
    blocks = f"block_group_lasso {{ xdimen: {k} ydimen: 1 block_decay_mult: 2 }}"
    blocks += f"block_group_lasso {{ xdimen: 1 ydimen: {4 // group} block_decay_mult: 0.5 }}"
    settings = f'type: "{kind}" momentum: 0.9 weight_decay: 0.01'
    named, _ = run(tmp_path, f"{settings} breadth_decay: 0.05 kernel_shape_decay: 0.05", convs(fields, group=group))
    tiled, _ = run(tmp_path, f"{settings} block_group_decay: 0.05", convs(blocks, group=group))
    plain, _ = run(tmp_path, settings, convs(group=group))
    for name, blob in blobs_of(tiled).items():
        torch.testing.assert_close(blobs_of(named)[name], blob, rtol=0, atol=2e-6)
    assert not torch.allclose(blobs_of(plain)["c1/0"], blobs_of(tiled)["c1/0"], atol=1e-3)


def test_only_one_of_the_two_factors_does_nothing(tmp_path: Path) -> None:
    plain, recorder = run(tmp_path, "", convs())
    for extra, param in (("breadth_decay: 1", ""), ("", "breadth_decay_mult: 1"), ("", ROWS)):
        other, _ = run(tmp_path, extra, convs(param))
        assert all(torch.equal(blob, blobs_of(plain)[name]) for name, blob in blobs_of(other).items())
    assert not recorder.of("sparsity")


def test_what_never_moves_has_a_history_of_its_lasso(tmp_path: Path) -> None:
    """As in Caffe, whose solver types gather it whatever the rate."""
    solver, _ = run(tmp_path, 'type: "AdaGrad" block_group_decay: 0.1', convs(f"lr_mult: 0 {ROWS}"), steps=2)
    weight = blobs_of(solver)["c1/0"]
    push = 0.1 * weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(torch.from_numpy(solver.updater.saved_history()[0]), 2 * push.square())


# -- zeroing


@pytest.mark.parametrize(
    ("extra", "param", "mode", "threshold"),
    [
        ("", "", "", 0),
        ("block_group_decay: 1", "", "", 0),
        ("", ROWS, "", 0),
        ("block_group_decay: 1", ROWS.replace("}", "block_decay_mult: 0 }"), "", 0),
        ("measure_threshold: 0.5", "", "", 0),
        ('weight_decay: 1 regularization_type: "L1"', "", "", 0),
        ("block_group_decay: 1", ROWS, "", 1e-4),
        ("kernel_shape_decay: 1", "kernel_shape_decay_mult: 1", "", 1e-4),
        ("", "regularization_type: 'L2'", "", 1e-4),
        ("", "", ELTWISE, 1e-4),
        ("prune_threshold: 0.5", "", "", 0.5),
        ("block_group_decay: 1 prune_threshold: 0", ROWS, ELTWISE, 0),
        ("max_threshold_factor: 10", "", "", 1e-4),
    ],
)
def test_weights_are_zeroed_only_where_it_is_asked_for(
    extra: str, param: str, mode: str, threshold: float, tmp_path: Path
) -> None:
    solver, _ = regression(tmp_path, extra, net=convs(param, mode1=mode))
    assert solver.updater.threshold == pytest.approx(threshold)


def test_conv_mode_asks_for_none(tmp_path: Path) -> None:
    net = (
        convs()
        .replace("group: 1", "group: 1 conv_mode: LOWERED_GEMM")
        .replace("num_output: 2", "num_output: 2 gemm_mode: GEMM")
    )
    assert regression(tmp_path, net=net)[0].updater.threshold == 0


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_prune_threshold_acts_with_every_type_on_every_blob(kind: str, tmp_path: Path) -> None:
    solver, _ = run(tmp_path, f'type: "{kind}" prune_threshold: 0.08', convs("lr_mult: 0"))
    assert bool((blobs_of(solver)["c1/0"] == 0).any())
    assert not any(bool(((blob != 0) & (blob.abs() < 0.08)).any()) for blob in blobs_of(solver).values())


# -- types of weight decay


def test_decay_of_its_own_and_by_value(tmp_path: Path) -> None:
    """L1 and L2 side by side, with a file of multipliers: against the formula, without a loss's gradient."""
    shares = np.random.default_rng(0).random((4, 4, 3, 3)).astype(np.float32)
    (tmp_path / "shares.bin").write_bytes(
        BlobProto(shape={"dim": shares.shape}, data=shares.ravel()).SerializeToString()
    )
    net = convs("regularization_type: 'L1' decay_mult: 2 decay_proto: 'shares.bin'", "lr_mult: 1")
    solver, _ = regression(tmp_path, "weight_decay: 0.1 prune_threshold: 0", net=net)
    before = blobs_of(solver)
    zeros = {name: torch.zeros(solver.net.shapes[name]) for name in ("x", "y")}
    solver.step(1, lambda *_: zeros)
    after = blobs_of(solver)
    expected = before["c1/0"] - 0.1 * 0.1 * 2 * torch.from_numpy(shares) * before["c1/0"].sign()
    torch.testing.assert_close(after["c1/0"], expected)
    torch.testing.assert_close(after["ip1/0"], before["ip1/0"] * (1 - 0.1 * 0.1))


def test_surgery_lets_pruned_weights_come_back(tmp_path: Path) -> None:
    """The dense weight behind a zero goes on by the gradients of the pruned net."""
    extra = 'weight_decay: 1e-6 regularization_type: "L1_DNS" prune_threshold: 0.1 momentum: 0.9'
    solver, _ = regression(tmp_path, extra, net=convs())
    solver.step(1, inputs)
    first = blobs_of(solver)["c1/0"] == 0
    assert 0.3 < float(first.float().mean()) < 1
    solver.step(12, inputs)
    back = first & (blobs_of(solver)["c1/0"] != 0)
    assert bool(back.any())
    # a weight of two axes is thresholded for good, as of type L1
    weight = blobs_of(solver)["ip1/0"]
    assert bool(((weight == 0) | (weight.abs() >= 0.1)).all())


def test_ista_has_one_penalty(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, 'weight_decay: 0.3 regularization_type: "ISTA"', net=convs())
    before = blobs_of(solver)["c1/0"]
    zeros = {name: torch.zeros(solver.net.shapes[name]) for name in ("x", "y")}
    solver.param.max_iter = 1
    solver.solve(lambda *_: zeros)
    expected = before.sign() * (before.abs() - 0.1 * 0.3).clamp(min=0)
    torch.testing.assert_close(blobs_of(solver)["c1/0"], expected)
    assert any("ISTA" in event.text for event in recorder.of("note"))


def test_threshold_by_the_update(tmp_path: Path) -> None:
    """t F / (1 + F |d|) for L1; what is of type L2 stays."""
    net = convs(p2="regularization_type: 'L2'")
    extra = 'weight_decay: 1e-9 regularization_type: "L1" max_threshold_factor: 50 prune_threshold: 2e-3'
    solver, _ = regression(tmp_path, f"{extra} snapshot_diff: true", net=net)
    before = blobs_of(solver)["c1/0"]
    solver.step(1, inputs)
    update = solver.updater.last_update()["c1", 0]
    weight = before - update
    bound = 2e-3 * 50 / (1 + 50 * update.abs())
    torch.testing.assert_close(
        blobs_of(solver)["c1/0"], torch.where(weight.abs() < bound, 0, weight), atol=1e-7, rtol=0
    )
    assert bool((blobs_of(solver)["c1/0"] == 0).any()) and bool((blobs_of(solver)["ip1/0"] != 0).all())


# -- graphs of a GPU, run on the CPU


@pytest.mark.parametrize(
    ("extra", "net"),
    [
        ("momentum: 0.9 weight_decay: 0.01 block_group_decay: 0.05", convs(ROWS + COLUMNS)),
        ('type: "Adam" momentum: 0.9 block_group_decay: 0.05', convs(ROWS, "regularization_type: 'L1'")),
        ('weight_decay: 0.01 regularization_type: "L1_DNS" prune_threshold: 0.05', convs()),
        ('weight_decay: 0.01 regularization_type: "ISTA" lr_policy: "exp" gamma: 0.9', convs()),
        ('weight_decay: 0.01 regularization_type: "L1" max_threshold_factor: 10 momentum: 0.5', convs()),
    ],
    ids=["lasso", "adam", "surgery", "ista", "factor"],
)
def test_graphs_give_the_same_bits(extra: str, net: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(net)
    extra = f"max_iter: 12 snapshot_after_train: false {extra}"
    plain, graphs = both(tmp_path, extra, inputs)
    graphs.assert_equals(plain)
    assert graphs.tape is not None and graphs.tape.replayed > 0
    assert len(plain.recorder.of("sparsity")) == 3
    host, _ = regression(tmp_path, f"display: 4 {extra}", net=net)
    host.step(12, inputs)
    for name, blob in blobs_of(host).items():
        torch.testing.assert_close(plain.state[name], blob, rtol=0, atol=2e-6)


def test_a_loss_that_is_not_finite_stops_soft_thresholds_too(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(convs())
    extra = 'max_iter: 9 snapshot_after_train: false weight_decay: 0.1 regularization_type: "ISTA"'

    def bad(iteration: int, sub: int) -> dict[str, Tensor]:
        return {name: blob * (float("inf") if iteration >= 5 else 1) for name, blob in inputs(iteration, sub).items()}

    stopped = trained(tmp_path, None, extra, bad)
    whole = trained(tmp_path, None, extra.replace("max_iter: 9", "max_iter: 5"), inputs)
    assert all(torch.equal(stopped.state[name], whole.state[name]) for name in ("c1/0", "ip1/0"))


# -- what is refused


WRONG = {
    "block_group_lasso { xdimen: 5 }": "param 0: block_group_lasso xdimen 5 doesn't divide the 36 columns of blob "
    "[4, 4, 3, 3]; the nearest is 4",
    "block_group_lasso { ydimen: 8 }": "ydimen 8 doesn't divide the 4 rows",
    "block_group_lasso { xdimen: 0 }": "xdimen 0 doesn't divide",
    "regularization_type: 'L2_DNS'": "regularization_type 'L2_DNS' isn't built: SkimCaffe itself",
    "regularization_type: 'L1_Winograd'": "'L1_Winograd' isn't built: forcereg convolves in no Winograd domain",
    "regularization_type: 'L3'": "param 0: unknown regularization_type 'L3'; expected ISTA or L1",
    "decay_proto: 'no.bin'": "no.bin cannot be read (No such file or directory); correct the path",
    "decay_proto: 'text.bin'": "is not a BlobProto",
    "decay_proto: 'small.bin'": "has shape [2, 2]; expected the blob's shape, [4, 4, 3, 3]",
}


@pytest.mark.parametrize("extra", ["block_group_decay: 1 weight_decay: 1", "display: 1 weight_decay: 1"])
@pytest.mark.parametrize(("param", "told"), WRONG.items(), ids=WRONG)
def test_one_clear_line(extra: str, param: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("no blob")
    (tmp_path / "small.bin").write_bytes(BlobProto(shape={"dim": [2, 2]}, data=[1] * 4).SerializeToString())
    with pytest.raises(ForceregError) as caught:
        regression(tmp_path, extra, net=convs(param))
    assert told in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/net.prototxt:5: layer 'c1': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["prune_threshold", "measure_threshold"])
def test_thresholds_below_zero(field: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=f"solver.prototxt: {field} is -1; expected >= 0"):
        regression(tmp_path, f"{field}: -1")


def shared(first: str, second: str) -> str:
    text = REGRESSION.replace("PARAMS", f"param {{ name: 'w' {first} }}").replace(
        'bottom: "ip" bottom: "y"', 'bottom: "q" bottom: "y"'
    )
    own = f'layer {{ name: "q" type: "InnerProduct" bottom: "x" top: "q" param {{ name: "w" {second} }} '
    return text.replace('layer { name: "loss"', own + 'inner_product_param { num_output: 2 } }\nlayer { name: "loss"')


def test_blocks_of_shared_parameters(tmp_path: Path) -> None:
    """A sharer's count where the owner has none; two sets don't; a decay file is the owner's to give."""
    solver, _ = regression(tmp_path, net=shared("", "block_group_lasso { xdimen: 3 }"))
    assert solver.net.learnable[0].sparse.blocks == ((3, 1, 1.0),)
    for first, second, told in (
        ("block_group_lasso { }", "block_group_lasso { }", "has block_group_lasso, and so has layer 'ip'"),
        ("", "decay_proto: 'x'", "has decay_proto; give it in layer 'ip', which owns it"),
        (
            "breadth_decay_mult: 1",
            "breadth_decay_mult: 2",
            "has breadth_decay_mult 2, layer 'ip' gives 1; use one value",
        ),
        ("regularization_type: 'L1'", "regularization_type: 'L2'", "has regularization_type L2, layer 'ip' gives L1"),
    ):
        with pytest.raises(ForceregError, match=told):
            regression(tmp_path, net=shared(first, second))


# -- what is told


def test_the_log_is_silent_without_a_field_of_sparsity(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, "display: 1", convs())
    assert not recorder.of("sparsity") and not recorder.of("masks")


def test_a_lasso_that_is_too_strong_is_warned_of(tmp_path: Path) -> None:
    def warned(extra: str) -> str:
        return " ".join(regression(tmp_path, f"max_iter: 10 {extra}", net=convs(ROWS + COLUMNS))[1].texts())

    assert warned("block_group_decay: 0.0009") == ""
    text = warned("block_group_decay: 0.05")
    assert "group lasso on c1: rate * decay is up to 0.01 (c1), above 0.0002" in text
    assert "none of them ever becomes zero; at the rate 0.1 the decays of a blob may add up to 0.002 at most" in text
    later = warned('block_group_decay: 0.05 lr_policy: "multistep" gamma: 0.01 stepvalue: 5')
    assert "none becomes zero before the rate is 0.002" in later
    assert warned('block_group_decay: 0.05 type: "Adam"') == ""


@pytest.mark.parametrize("early", [True, False])
def test_a_rate_that_drops_too_early_is_warned_of(early: bool, tmp_path: Path) -> None:
    drop = 20 if early else 60
    extra = f'lr_policy: "multistep" gamma: 0.1 stepvalue: {drop} block_group_decay: 0.002 base_lr: 0.05'
    solver, recorder = regression(
        tmp_path, f"display: 1 prune_threshold: 0.06 {extra}", net=convs("block_group_lasso { }")
    )
    zeros: dict[str, Any] = {name: torch.zeros(solver.net.shapes[name]) for name in ("x", "y")}
    with torch.no_grad():  # weights that reach the threshold one after the other, up to iteration 40
        solver.net.params["c1"][0].copy_(0.06 + torch.linspace(0, 0.004, 144).reshape(4, 4, 3, 3))
    solver.step(70, lambda *_: zeros)
    found = [text for text in recorder.texts() if "the rate drops at iteration" in text]
    assert len(found) == early
    if early:
        assert "sparsity is made at the first rate, accuracy comes back at the later ones" in found[0]


def test_check_tells_what_is_made_sparse(tmp_path: Path) -> None:
    net = convs(ROWS, mode2=ELTWISE).replace('"Input"', '"DummyData"').replace("input_param", "dummy_data_param")
    (tmp_path / "net.prototxt").write_text(net)
    path = write_solver(tmp_path, "max_iter: 10 block_group_decay: 0.05 snapshot_after_train: false")
    report = forcereg.check(path)
    expected = "group lasso (columns x rows, decay) on c1 (36x1 0.05); what is zero stays so in ip1; zeros below 0.0001"
    assert report.facts["sparsity"] == expected
    assert any("none of them ever becomes zero" in text for text in report.warnings)
    (tmp_path / "net.prototxt").write_text(net.replace("xdimen: 36", "xdimen: 35"))
    assert any("xdimen 35 doesn't divide the 36 columns" in text for text in forcereg.check(path).errors)


def test_layers_that_are_loaded_are_told_of(tmp_path: Path) -> None:
    solver, recorder = run(tmp_path, "prune_threshold: 0.08 snapshot_prefix: 'n'", convs(mode1=ELTWISE))
    model = solver.snapshot()
    again, recorder = regression(tmp_path, "prune_threshold: 0.08", net=convs(mode1=ELTWISE))
    again.load_weights(model)
    stream = io.StringIO()
    for event in recorder.of("masks"):
        GlogWriter(stream)(event)
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    share = float((blobs_of(again)["c1/0"] == 0).float().mean())
    assert lines[:2] == [f"layer\tc1\thas sparsity of {share:g}", "all zero weights of c1 are frozen"]
    assert len(lines) == 3 and lines[2].startswith("layer\tip1\thas sparsity of 0.")


def test_plot_of_a_run(tmp_path: Path, run_cli: RunCli) -> None:
    """Sparsity of each layer by the real commands."""
    net = convs("block_group_lasso { }")
    (tmp_path / "net.prototxt").write_text(
        net.replace('"Input"', '"DummyData"').replace("input_param", "dummy_data_param")
    )
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 4 display: 1 block_group_decay: 0.001 '
        "prune_threshold: 0.05 snapshot_after_train: false solver_mode: CPU random_seed: 1"
    )
    done = run_cli("train", "--solver", "solver.prototxt", "--log-json", "log.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "    Element Sparsity %: \n" in done.stderr and "(1,1):" in done.stderr
    drawn = run_cli("plot", "log.json", "-o", "curves.csv", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    names = {line.split(",")[2] for line in (tmp_path / "curves.csv").read_text().splitlines()[1:]}
    assert {"c1 element sparsity", "c1 row sparsity", "ip1 column sparsity"} <= names
