"""The training loop: what happens when, what changes and what must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.solver.force import force_gradient
from forcereg.solver.loop import Solver
from tests.solver.nets import (
    IMAGES,
    REGRESSION,
    TESTED,
    Recorder,
    batch,
    batches,
    blobs_of,
    regression,
    write_images,
    write_solver,
)


def images(root: Path, extra: str = "", net: str = IMAGES) -> tuple[Solver, Recorder]:
    """A solver over the image net with data layers, and its recorder."""
    write_images(root, net)
    recorder = Recorder()
    return Solver(write_solver(root, extra), observers=[recorder]), recorder


# -- the schedule


def test_order_of_a_whole_run(tmp_path: Path) -> None:
    extra = 'test_iter: 1 test_interval: 2 display: 2 snapshot: 3 max_iter: 4 snapshot_prefix: "s"'
    extra += ' lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 3'
    solver, recorder = regression(tmp_path, extra, net=TESTED)
    solver.solve(batches)
    assert recorder.story() == [
        "start",
        *("test_start 0", "test 0", "train 0", "rate 0"),
        *("test_start 2", "test 2", "train 2", "step 2", "rate 2", "snapshot 3"),
        *("step 3", "snapshot 4", "final 4", "test_start 4", "test 4", "done"),
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        pytest.param("test_interval: 2 test_initialization: false", [2, 4], id="not-at-the-start"),
        pytest.param("test_interval: 2", [0, 2, 4], id="at-the-start-and-the-end"),
        pytest.param("test_interval: 3", [0, 3], id="end-not-due"),
    ],
)
def test_when_it_tests(extra: str, expected: list[int], tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, f"{extra} test_iter: 1 max_iter: 4", net=TESTED)
    solver.solve(batches)
    assert [event.iteration for event in recorder.of("test")] == expected


@pytest.mark.parametrize(
    ("extra", "iterations"),
    [
        pytest.param("snapshot: 2 max_iter: 4", [2, 4], id="due-at-the-end-only-once"),
        pytest.param("snapshot: 3 max_iter: 4", [3, 4], id="after-train"),
        pytest.param("max_iter: 4", [4], id="only-after-train"),
        pytest.param("snapshot: 3 max_iter: 4 snapshot_after_train: false", [3], id="not-after-train"),
        pytest.param("snapshot_after_train: false max_iter: 4", [], id="never"),
        pytest.param("max_iter: 0", [0], id="even-without-an-iteration"),
    ],
)
def test_when_it_snapshots(extra: str, iterations: list[int], tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, f'{extra} snapshot_prefix: "s"')
    solver.solve(batches)
    assert [event.iteration for event in recorder.of("snapshot")] == iterations
    written = {path.name for path in tmp_path.glob("*.h5")}
    kinds = ("caffemodel", "solverstate")
    assert written == {f"s_iter_{i}.{kind}.h5" for i in iterations for kind in kinds}


def test_solver_text_needs_a_prefix_before_the_first_iteration(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, "max_iter: 2")
    text = (tmp_path / "solver.prototxt").read_text().replace("net.prototxt", str(tmp_path / "net.prototxt"))
    solver = Solver(text)
    with pytest.raises(ForceregError, match=r"^<text>: snapshot_prefix is missing; set for example"):
        solver.solve(batches)
    assert solver.iter == 0


@pytest.mark.parametrize(
    ("display", "expected"), [(2, ["train 0", "train 2", "final 4"]), (3, ["train 0", "train 3"]), (0, [])]
)
def test_when_it_displays(display: int, expected: list[str], tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, f"display: {display} max_iter: 4")
    solver.solve(batches)
    assert [line for line in recorder.story() if line.split()[0] in ("train", "final")] == expected


def test_max_iter_is_absolute(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, "max_iter: 5")
    solver.step(3, batches)
    assert solver.iter == 3
    solver.solve(batches)
    assert solver.iter == 5
    assert [event.iteration for event in recorder.of("snapshot")] == [5]


def test_several_test_nets_in_order(tmp_path: Path) -> None:
    extra = "test_iter: 2 test_iter: 1 test_interval: 2 max_iter: 2 test_compute_loss: true"
    solver, recorder = images(tmp_path, extra)
    solver.solve()
    assert [(event.net, event.iteration) for event in recorder.of("test")] == [(0, 0), (1, 0), (0, 2), (1, 2)]
    for event in recorder.of("test"):
        loss = next(output for output in event.outputs if output.name == "loss")
        assert event.loss == pytest.approx(loss.value, rel=1e-6)
        assert loss.weight == 1


def test_test_data_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two batches of five are all ten images: every test sees them all, one batch sees turn and turn about."""
    solver, _ = images(tmp_path, "test_iter: 1 test_interval: 10")
    single = [solver.test(0).mean("loss") for _ in range(4)]
    assert single[0] != single[1]
    assert (single[0], single[1]) == (single[2], single[3])
    solver.param.test_iter[0] = 2
    assert solver.test(0).mean("loss") == pytest.approx((single[0] + single[1]) / 2, rel=1e-6)


def test_loss_weights_are_shown_with_the_outputs(tmp_path: Path) -> None:
    net = REGRESSION.replace('top: "loss"', 'top: "loss" loss_weight: 0.5')
    solver, recorder = regression(tmp_path, "display: 1", net=net)
    solver.step(1, batch())
    (event,) = recorder.of("train")
    (output,) = event.outputs
    assert (output.name, output.weight) == ("loss", 0.5)
    assert event.loss == pytest.approx(0.5 * output.value)


# -- losses and inputs


def raw_losses(root: Path, count: int) -> list[float]:
    solver, _ = regression(root)
    return [float(solver.step(1, batches)) for _ in range(count)]


@pytest.mark.parametrize("window", [1, 3, 20])
def test_average_loss(window: int, tmp_path: Path) -> None:
    raw = raw_losses(tmp_path, 8)
    solver, recorder = regression(tmp_path, f"average_loss: {window} display: 1")
    last = solver.step(8, batches)
    shown = [event.loss for event in recorder.of("train")]
    assert shown == pytest.approx([np.mean(raw[max(0, i + 1 - window) : i + 1]) for i in range(8)], rel=1e-6)
    assert last.shape == ()
    assert float(last) == pytest.approx(shown[-1])


def test_iter_size_is_one_large_batch(tmp_path: Path) -> None:
    """The mean over two sub-batches of 4 equals one batch of 8, clipped at twice the threshold (Caffe's order)."""
    whole, _ = regression(tmp_path, "momentum: 0.5 weight_decay: 0.1 clip_gradients: 0.05")
    parts, _ = regression(tmp_path, "momentum: 0.5 weight_decay: 0.1 clip_gradients: 0.1 iter_size: 2")

    def joined(iteration: int, sub: int) -> dict[str, torch.Tensor]:
        first, second = batches(iteration, 0), batches(iteration, 1)
        return {name: torch.cat([first[name], second[name]]) for name in first}

    for _ in range(3):
        assert float(parts.step(1, batches)) == pytest.approx(float(whole.step(1, joined)), rel=1e-5)
    for found, expected in zip(blobs_of(parts).values(), blobs_of(whole).values(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("forced", [False, True], ids=["frozen", "force_backward"])
def test_a_frozen_weights_gradient_counts_in_the_clipped_norm_if_it_is_forced(forced: bool, tmp_path: Path) -> None:
    """Caffe's norm is over all gradients there are; what has lr_mult 0 stays as it is all the same."""
    params, threshold = "param { lr_mult: 0 }", 0.01
    net = REGRESSION + f"force_backward: {str(forced).lower()}"
    solver, _ = regression(tmp_path, f"clip_gradients: {threshold} weight_decay: 0.5", params, net)
    before = blobs_of(solver)
    free = regression(tmp_path, "", "", REGRESSION)[0].net  # no multipliers: every gradient
    with torch.no_grad():
        for mine, theirs in zip(free.params["ip"], solver.net.params["ip"], strict=True):
            mine.copy_(theirs)
    free.forward_loss(batch())[0].backward()
    weight, bias = (blob.grad for blob in free.params["ip"])
    assert weight is not None and bias is not None
    norm = torch.cat([bias.flatten(), *([weight.flatten()] if forced else [])]).norm()
    solver.step(1, batch())
    after = blobs_of(solver)
    torch.testing.assert_close(after["ip/0"], before["ip/0"], rtol=0, atol=0)
    decayed = bias * threshold / norm + 0.5 * before["ip/1"]
    torch.testing.assert_close(after["ip/1"], before["ip/1"] - 0.1 * decayed)


def test_inputs_as_a_dict_are_used_again_and_again(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path)
    losses = [float(solver.step(1, batch())) for _ in range(30)]
    assert losses == sorted(losses, reverse=True)


def test_inputs_as_a_callable(tmp_path: Path) -> None:
    asked = []

    def inputs(iteration: int, sub: int) -> dict[str, torch.Tensor]:
        asked.append((iteration, sub))
        return batches(iteration, sub)

    solver, _ = regression(tmp_path, "iter_size: 2")
    solver.step(2, inputs)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_inputs_may_be_arrays_of_any_kind(tmp_path: Path) -> None:
    tensors, _ = regression(tmp_path)
    arrays, _ = regression(tmp_path)
    data = {"x": np.arange(12).reshape(4, 3), "y": np.ones((4, 2))}
    expected = tensors.step(2, {name: torch.from_numpy(value).float() for name, value in data.items()})
    assert torch.equal(arrays.step(2, data), expected)


def test_inputs_feed_test_nets_too(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, "test_iter: 3 test_interval: 5", net=TESTED)
    solver.step(1, batch())
    (event,) = recorder.of("test")
    start, _ = regression(tmp_path)
    assert event.outputs[0].value == pytest.approx(float(start.step(1, batch())), rel=1e-6)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        pytest.param(None, "needs input blobs x, y", id="none"),
        pytest.param({"x": torch.zeros(4, 3)}, "needs input blobs y", id="one-missing"),
        pytest.param({**batch(), "z": torch.zeros(1)}, "no input blob 'z'", id="unknown"),
    ],
)
def test_wrong_inputs(inputs: dict[str, torch.Tensor] | None, says: str, tmp_path: Path) -> None:
    solver, _ = regression(tmp_path)
    with pytest.raises(ForceregError, match=says):
        solver.step(1, inputs)


def test_step_runs_n_iterations_and_rate_is_the_coming_ones(tmp_path: Path) -> None:
    extra = 'lr_policy: "step" gamma: 0.5 stepsize: 2'
    solver, _ = regression(tmp_path, extra)
    assert (solver.iter, solver.lr) == (0, pytest.approx(0.1))
    solver.step(2, batch())
    assert (solver.iter, solver.lr) == (2, pytest.approx(0.05))


# -- what learns


def test_closed_form_of_one_iteration(tmp_path: Path) -> None:
    """Least squares: gradient x'(xw - y)/N, then decay, then force, times rate and multipliers (Caffe's order)."""
    params = "param { lr_mult: 2 decay_mult: 3 force_mult: 0.5 } param { lr_mult: 4 decay_mult: 0 }"
    extra = 'weight_decay: 0.01 force_decay: 0.02 force_type: "Degradation"'
    solver, _ = regression(tmp_path, extra, params)
    before, data = blobs_of(solver), batch()
    solver.step(1, data)
    weight, bias = before["ip/0"], before["ip/1"]
    residual = (data["x"] @ weight.T + bias - data["y"]) / 4
    gradient = residual.T @ data["x"] + 0.03 * weight + 0.01 * force_gradient(weight, "Degradation")
    after = blobs_of(solver)
    torch.testing.assert_close(after["ip/0"], weight - 0.2 * gradient)
    torch.testing.assert_close(after["ip/1"], bias - 0.4 * residual.sum(0))


@pytest.mark.parametrize("end", [-1, 0, 2])
def test_force_ends_at_force_iter(end: int, tmp_path: Path) -> None:
    """Each iteration's update is the plain run's plus, while it lasts, the force, from the same weights."""
    plain, _ = regression(tmp_path)
    extra = f'force_decay: 0.05 force_iter: {end} force_type: "Linear"'
    forced, _ = regression(tmp_path, extra, "param { force_mult: 2 }")
    for iteration in range(4):
        before = blobs_of(forced)["ip/0"]
        with torch.no_grad():
            for ours, theirs in zip(plain.net.params["ip"], forced.net.params["ip"], strict=True):
                ours.copy_(theirs)
        plain.step(1, batches)
        forced.step(1, batches)
        force = 0.1 * 0.05 * 2 * force_gradient(before, "Linear") * (end == -1 or iteration < end)
        torch.testing.assert_close(blobs_of(forced)["ip/0"], blobs_of(plain)["ip/0"] - force, rtol=0, atol=1e-6)


def test_frozen_blobs_stay_and_blobs_without_gradient_decay(tmp_path: Path) -> None:
    net = REGRESSION + (
        'layer { name: "aside" type: "InnerProduct" bottom: "x" top: "aside" '
        'inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }'
    )
    params = "param { lr_mult: 0 } param { lr_mult: 1 }"
    solver, _ = regression(tmp_path, "weight_decay: 0.5", params, net)
    before = blobs_of(solver)
    solver.step(1, batch())
    after = blobs_of(solver)
    assert torch.equal(after["ip/0"], before["ip/0"])
    assert not torch.equal(after["ip/1"], before["ip/1"])
    torch.testing.assert_close(after["aside/0"], before["aside/0"] * (1 - 0.1 * 0.5))
    assert [one.shape for one in solver.updater.saved_history()] == [(2, 3), (2,), (2, 3), (2,)]


def test_a_net_that_learns_nothing_still_runs(tmp_path: Path) -> None:
    params = "param { lr_mult: 0 } param { lr_mult: 0 }"
    solver, _ = regression(tmp_path, "weight_decay: 0.5 momentum: 0.9", params)
    before = blobs_of(solver)
    assert float(solver.step(2, batch())) > 0
    assert all(torch.equal(blob, before[name]) for name, blob in blobs_of(solver).items())


def test_test_nets_share_weights_and_statistics(tmp_path: Path) -> None:
    solver, _ = images(tmp_path, "test_iter: 1 test_interval: 100 test_initialization: false")
    solver.step(3)
    (test_net,) = solver.test_nets
    assert solver.net.params["bn"][2].item() == pytest.approx(1 + 0.999 + 0.999**2)
    for name, blobs in solver.net.params.items():
        for mine, theirs in zip(blobs, test_net.params.get(name, blobs), strict=True):
            assert mine.data_ptr() == theirs.data_ptr()
    before = blobs_of(solver)
    solver.test(0)
    assert all(torch.equal(blob, before[name]) for name, blob in blobs_of(solver).items())


def test_test_net_of_another_shape(tmp_path: Path) -> None:
    other = REGRESSION.replace("num_output: 2", "num_output: 4").replace("dim: 4 dim: 2", "dim: 4 dim: 4")
    (tmp_path / "other.prototxt").write_text(other.replace("PARAMS", ""))
    extra = 'test_net: "other.prototxt" test_iter: 1 test_interval: 1'
    with pytest.raises(ForceregError, match=r"other\.prototxt:\d+: layer 'ip'.*\[4, 3\].*\[2, 3\]"):
        regression(tmp_path, extra)


def test_final_display_leaves_everything_as_saved(tmp_path: Path) -> None:
    """BatchNorm sums, data position, dropout and loss window: going on equals a run without the display."""
    extra = 'max_iter: 4 average_loss: 3 snapshot_prefix: "s"'
    quiet, _ = images(tmp_path, extra)
    quiet.solve()
    expected = float(quiet.step(3))
    shown, recorder = images(tmp_path, f"{extra} display: 2")
    shown.solve()
    assert recorder.story()[-2:] == ["final 4", "done"]
    assert shown.net.params["bn"][2].item() == pytest.approx(sum(0.999**i for i in range(4)))
    assert float(shown.step(3)) == expected
    for found, wanted in zip(blobs_of(shown).values(), blobs_of(quiet).values(), strict=True):
        assert torch.equal(found, wanted)


# -- initial weights


def test_weights_field_later_files_win(tmp_path: Path) -> None:
    def write(name: str, value: float) -> None:
        snapshot.write_model(
            tmp_path / name, {"ip": {0: np.full((2, 3), value), 1: np.full(2, value)}, "gone": {0: np.zeros(2)}}
        )

    write("a.h5", 1)
    write("b.h5", 2)
    write("c.h5", 3)
    solver, recorder = regression(tmp_path, 'weights: "a.h5, b.h5" weights: "c.h5"')
    assert [Path(event.file).name for event in recorder.of("weights")] == ["a.h5", "b.h5", "c.h5"]
    assert recorder.of("weights")[0].report.ignored == ("gone",)
    assert bool((solver.net.params["ip"][0] == 3).all())


def test_weights_reach_layers_that_only_a_test_net_has(tmp_path: Path) -> None:
    net = TESTED + (
        'layer { name: "probe" type: "InnerProduct" bottom: "x" top: "probe" include { phase: TEST } '
        "inner_product_param { num_output: 1 bias_term: false } }"
    )
    snapshot.write_model(tmp_path / "a.h5", {"probe": {0: np.full((1, 3), 5.0)}})
    solver, _ = regression(tmp_path, 'weights: "a.h5" test_iter: 1 test_interval: 1', net=net)
    assert solver.test_nets[0].params["probe"][0].tolist() == [[5, 5, 5]]


def test_random_seed_fixes_the_fillers(tmp_path: Path) -> None:
    first, again = (blobs_of(regression(tmp_path)[0])["ip/0"] for _ in range(2))
    assert torch.equal(first, again)
    (tmp_path / "other.prototxt").write_text((tmp_path / "solver.prototxt").read_text().replace("seed: 7", "seed: 8"))
    other = blobs_of(Solver(tmp_path / "other.prototxt"))["ip/0"]
    assert not torch.equal(first, other)
    (tmp_path / "none.prototxt").write_text((tmp_path / "solver.prototxt").read_text().replace("random_seed: 7", ""))
    assert Solver(tmp_path / "none.prototxt").seed != Solver(tmp_path / "none.prototxt").seed
