"""Pruning while training: exactly the smallest go, masks hold, surgery brings weights back, guided decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.solver.loop import Solver
from forcereg.solver.pruning import DNS, L1, MAGNITUDE, RESTORED, SKIPPED, STOPPED, How, Limit, Pruning
from forcereg.solver.sparsity.pruning import cubic, cut_at, kept, smallest
from forcereg.system.events import Event
from tests.solver.nets import Recorder, write_images, write_solver

LAYERS = ("conv", "ip")
values = st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=12)
TRAINING = (
    'momentum: 0.9 weight_decay: 0.001 base_lr: 0.01 snapshot_prefix: "s" test_iter: 1 test_interval: 100 max_iter: '
)
L1_ON_CONV = 'param { lr_mult: 1 decay_mult: 30 regularization_type: "L1" }'


# -- which go


@given(st.lists(values, min_size=1, max_size=4), st.data())
def test_the_smallest_of_all_layers_go(found: list[list[float]], data: st.DataObject) -> None:
    weights = {str(place): torch.tensor(own) for place, own in enumerate(found)}
    count = data.draw(st.integers(0, sum(map(len, found))))
    counts = smallest(weights, count)
    assert sum(counts.values()) == count
    masks = {name: kept(weight, counts[name]) for name, weight in weights.items()}
    gone = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    left = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    assert len(gone) == count
    assert not len(gone) or not len(left) or gone.max() <= left.min()


@given(st.lists(values, min_size=1, max_size=4), st.data())
def test_what_a_layer_can_t_have_others_have(found: list[list[float]], data: st.DataObject) -> None:
    weights = {str(place): torch.tensor(own) for place, own in enumerate(found)}
    most = {name: data.draw(st.integers(0, len(weight))) for name, weight in weights.items()}
    count = data.draw(st.integers(0, sum(map(len, found))))
    counts = smallest(weights, count, most)
    assert all(counts[name] <= most[name] for name in weights)
    assert sum(counts.values()) == min(count, sum(most.values()))


@given(values, st.data())
def test_a_cut_has_no_more_below_it_than_asked_for(found: list[float], data: st.DataObject) -> None:
    weight = torch.tensor(found)
    count = data.draw(st.integers(0, len(found)))
    below = weight.abs() < cut_at(weight, count)
    assert int(below.sum()) <= count
    assert len({*weight.abs().tolist()}) < len(found) or int(below.sum()) == count


def test_the_schedule_is_zhu_s_and_gupta_s() -> None:
    assert [cubic(part / 4) for part in range(5)] == [0, 1 - 27 / 64, 1 - 1 / 8, 1 - 1 / 64, 1]


# -- while it trains


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def pruned(root: Path, how: How, iterations: int = 12, extra: str = "") -> tuple[Solver, Pruning, Recorder]:
    """A solver that is to prune, before its first iteration."""
    recorder = Recorder()
    solver = Solver(write_solver(root, f"{TRAINING}{iterations} {extra}"), observers=[recorder])
    return solver, solver.prune_by(how), recorder


def zeros(solver: Solver) -> dict[str, int]:
    return {name: int((solver.net.params[name][0] == 0).sum()) for name in LAYERS}


def test_at_once_the_smallest_go(images: Path) -> None:
    solver, pruning, _ = pruned(images, How(LAYERS, target=0.7), iterations=0)
    before = {name: solver.net.params[name][0].detach().clone() for name in LAYERS}
    solver.solve()
    expected = smallest(before, round(0.7 * sum(weight.numel() for weight in before.values())))
    assert zeros(solver) == expected
    for name, weight in before.items():
        mask = kept(weight, expected[name])
        assert torch.equal(solver.net.params[name][0], weight * mask)
        assert torch.equal(pruning.masks[f"{name}/0"], mask)


def test_of_each_layer_its_own_share(images: Path) -> None:
    solver, _, _ = pruned(images, How(LAYERS, shares={"conv": 0.25, "ip": 0.5}), iterations=0)
    solver.solve()
    assert zeros(solver) == {"conv": 9, "ip": solver.net.params["ip"][0].numel() // 2}


def test_by_and_by_the_schedule_s_share_goes_and_stays(images: Path) -> None:
    solver, _, recorder = pruned(images, How(LAYERS, target=0.8, until=12, every=3))
    total, gone = sum(solver.net.params[name][0].numel() for name in LAYERS), torch.zeros(0, dtype=torch.bool)
    for iteration in range(0, 12, 3):
        solver.step(3)
        assert sum(zeros(solver).values()) == round(0.8 * cubic((iteration + 3) / 12) * total)
        now = torch.cat([solver.net.params[name][0].flatten() == 0 for name in LAYERS])
        assert now[: len(gone)][gone].all()
        gone = now
    told = recorder.of("pruning")
    assert [event.iteration for event in told] == [0, 3, 6, 9]
    assert told[-1].layers[1]["share"] == float((solver.net.params["ip"][0] != 0).double().mean())


def test_masks_hold_through_fine_tuning_and_a_resume(images: Path) -> None:
    solver, pruning, _ = pruned(images, How(LAYERS, target=0.8, until=4, every=2), iterations=4)
    solver.solve()
    frozen = {name: solver.net.params[name][0].detach() == 0 for name in LAYERS}
    tuned = Solver(write_solver(images, f"{TRAINING}6 snapshot: 3"))
    tuned.net.load_state_dict(solver.net.state_dict())
    tuned.set_masks(pruning.masks)
    tuned.solve()
    again = Solver(write_solver(images, f"{TRAINING}6"))
    again.restore(images / "s_iter_3.solverstate.h5")
    again.solve()
    for one in (tuned, again):
        for name, mask in frozen.items():
            weight = one.net.params[name][0].detach()
            assert torch.equal(weight == 0, mask)
            assert not torch.equal(weight, solver.net.params[name][0])


GUIDED = {"conv": Limit(0.9, 0.3), "ip": Limit(0.95, 0.0)}


@pytest.mark.parametrize("limits", [None, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("method", [MAGNITUDE, L1, DNS])
def test_a_resumed_pruning_is_one_that_was_never_stopped(
    method: str, limits: dict[str, Limit] | None, images: Path
) -> None:
    extra = "snapshot: 4 prune_threshold: 0.01 max_threshold_factor: 10" if method == L1 else "snapshot: 4"
    net = images / "net.prototxt"
    if method == L1:
        net.write_text(net.read_text().replace("param { lr_mult: 1 force_mult: 1 }", L1_ON_CONV))
    how = How(LAYERS, method, 0.8, None, 10, 2, limits, dense_of(images))
    if method == L1:
        how = replace(how, target=None, aim=lambda: (0.8, None))
    files = [images / f"s_iter_12.{kind}.h5" for kind in ("caffemodel", "solverstate")]
    whole, pruning, _ = pruned(images, how, extra=extra)
    whole.solve()
    before = [path.read_bytes() for path in files]
    again, resumed, _ = pruned(images, how, extra=extra)
    again.restore(images / "s_iter_4.solverstate.h5")
    again.solve()
    assert [path.read_bytes() for path in files] == before
    assert resumed.decided == pruning.decided
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in pruning.masks.items())


@pytest.mark.parametrize("method", [MAGNITUDE, DNS])
def test_a_snapshot_among_tests_has_what_was_pruned_before_them(method: str, images: Path) -> None:
    """In front of iteration 4 the pruning comes first, then the tests, between whose batches a signal asks for it."""
    text = TRAINING.replace("test_iter: 1 test_interval: 100", "test_iter: 2 test_interval: 4") + "8"
    how = How(LAYERS, method, 0.8, None, 8, 2)

    def solver() -> Solver:
        made = Solver(write_solver(images, text))
        made.prune_by(how)
        return made

    whole = solver()
    whole.observers = [lambda event: asks(whole, event)]
    whole.solve()
    file = images / "s_iter_8.caffemodel.h5"
    before = file.read_bytes()
    again = solver()
    again.restore(images / "s_iter_4.solverstate.h5")
    # what is cut in front of iteration 4 is there, so that it isn't cut twice
    assert again.pruning is not None and not again.pruning.due(4) and again.pruning.due(6)
    assert float((again.net.params["conv"][0] == 0).float().mean()) > 0.3 or method == DNS
    again.solve()
    assert file.read_bytes() == before


def asks(solver: Solver, event: Event) -> None:
    """For a snapshot, in the tests in front of iteration 4."""
    if event.kind == "test_start" and event.iteration == 4:
        solver.snapshot_requested = True


def dense_of(root: Path) -> dict[str, torch.Tensor]:
    """The weights that a fresh solver has."""
    net = Solver(write_solver(root, f"{TRAINING}1")).net
    return {name: net.params[name][0].detach().clone() for name in LAYERS}


def test_surgery_brings_weights_back(images: Path) -> None:
    solver, _, _ = pruned(images, How(LAYERS, DNS, 0.6, until=40, every=4), iterations=40)
    gone, back = torch.zeros(0, dtype=torch.bool), 0
    for _ in range(40):
        solver.step(1)
        now = solver.net.params["ip"][0].flatten() == 0
        back += int((gone & ~now).sum()) if len(gone) else 0
        gone = now
    assert back
    # what is behind the zeros learns on
    dense = solver.updater.zeroing.dense("ip/0").flatten()
    assert dense[gone].count_nonzero() == gone.sum()


def test_in_the_end_a_surgery_has_the_share_exactly(images: Path) -> None:
    solver, pruning, _ = pruned(images, How(LAYERS, DNS, 0.6, until=12, every=4))
    solver.solve()
    total = sum(solver.net.params[name][0].numel() for name in LAYERS)
    assert sum(zeros(solver).values()) == round(0.6 * total)
    assert not solver.updater.zeroing.carried()
    assert {name: int((~mask).sum()) for name, mask in pruning.masks.items()} == {
        f"{name}/0": count for name, count in zeros(solver).items()
    }


def test_l1_makes_zeros_and_the_rest_of_the_target_is_cut(images: Path) -> None:
    net = images / "net.prototxt"
    net.write_text(net.read_text().replace("param { lr_mult: 1 force_mult: 1 }", L1_ON_CONV))
    how = How(("conv",), L1, until=30, every=10, aim=lambda: (0.5, None))
    solver, pruning, recorder = pruned(images, how, 30, "prune_threshold: 0.01 max_threshold_factor: 10")
    solver.solve()
    assert 0 < recorder.of("pruning")[2].layers[0]["share"] < 1
    weight = solver.net.params["conv"][0]
    assert int((weight == 0).sum()) >= 18
    assert torch.equal(pruning.masks["conv/0"], weight != 0)


# -- guided


def decisions(recorder: Recorder) -> list[tuple[int, str, str]]:
    return [(event.iteration, event.layer, event.decision) for event in recorder.of("decision")]


@pytest.mark.parametrize("method", [MAGNITUDE, DNS])
def test_what_can_t_win_is_left_out_and_what_gets_no_faster_stops(method: str, images: Path) -> None:
    how = How(LAYERS, method, 0.9, None, 12, 3, {"conv": Limit(0.5, 0.25)}, dense_of(images))
    solver, pruning, recorder = pruned(images, how)
    solver.solve()
    (first, second) = decisions(recorder)
    assert first == (0, "ip", SKIPPED)
    assert second[1:] == ("conv", STOPPED) and second[0] < 12
    # 9 of 36 are left, though 0.9 would be 4
    assert zeros(solver) == {"conv": 27, "ip": 0}
    assert [*pruning.masks] == ["conv/0"]


@pytest.mark.parametrize(("iterations", "until"), [(0, 0), (12, 12)], ids=["at once", "by and by"])
def test_what_isn_t_faster_gets_its_dense_weights_back(iterations: int, until: int, images: Path) -> None:
    dense = dense_of(images)
    how = How(("conv",), MAGNITUDE, 0.5, None, until, 3, {"conv": Limit(0.3, 0.1)}, dense)
    solver, pruning, recorder = pruned(images, how, iterations)
    solver.solve()
    assert decisions(recorder) == [(iterations, "conv", RESTORED)]
    assert torch.equal(solver.net.params["conv"][0], dense["conv"])
    assert not pruning.masks


def test_a_layer_that_has_settled_is_restored_while_others_go_on(images: Path) -> None:
    dense = dense_of(images)
    shares = {"conv": 0.3, "ip": 0.9}
    how = How(LAYERS, MAGNITUDE, None, shares, 40, 1, {"conv": Limit(0.5, 0.1), "ip": Limit(0.5, 0.0)}, dense)
    solver, _, recorder = pruned(images, how, 40)
    solver.step(40)
    ((at, layer, decision),) = decisions(recorder)
    assert (layer, decision) == ("conv", RESTORED) and 20 <= at < 40
    # it has learned on since
    assert zeros(solver)["conv"] == 0 and not torch.equal(solver.net.params["conv"][0], dense["conv"])
    assert "faster than dense only below 50.0%" in recorder.of("decision")[0].text


@pytest.mark.parametrize(
    ("limit", "decision"), [(Limit(0.95, 0.8), STOPPED), (Limit(0.01), RESTORED)], ids=["stopped", "restored"]
)
def test_l1_lets_go_of_a_layer_that_is_judged(limit: Limit, decision: str, images: Path) -> None:
    net = images / "net.prototxt"
    net.write_text(net.read_text().replace("param { lr_mult: 1 force_mult: 1 }", L1_ON_CONV))
    how = How(("conv",), L1, until=60, every=5, limits={"conv": limit}, dense=dense_of(images))
    how = replace(how, aim=lambda: (0.5, None))
    solver, pruning, recorder = pruned(images, how, 60, "prune_threshold: 0.01 max_threshold_factor: 10")
    counts = []
    for _ in range(60):
        solver.step(1)
        if pruning.decided:
            counts.append(zeros(solver)["conv"])
    ((_, _, made),) = decisions(recorder)
    assert made == decision and len(counts) > 5
    # what is left of it learns on, and no more of it becomes zero
    assert {*counts} == ({counts[0]} if decision == STOPPED else {0})
    assert counts[0] >= 7 or decision == RESTORED


@pytest.mark.parametrize("name", ["bn", "none"])
def test_a_layer_without_weights_is_one_line(name: str, images: Path) -> None:
    with pytest.raises(ForceregError, match=f"layer '{name}' has no weights that learn; none is pruned"):
        pruned(images, How((name,), target=0.5))


def test_a_damaged_entry_is_told(images: Path) -> None:
    import h5py

    solver, _, _ = pruned(images, How(LAYERS, target=0.5, until=2, every=1), 2)
    solver.solve()
    path: Any = images / "s_iter_2.solverstate.h5"
    with h5py.File(path, "a") as file:
        del file["forcereg/pruning/left/conv"]
        file["forcereg/pruning/left/conv"] = np.float64(-1)
    again, _, _ = pruned(images, How(LAYERS, target=0.5, until=2, every=1), 2)
    with pytest.raises(ForceregError, match="damaged"):
        again.restore(path)
