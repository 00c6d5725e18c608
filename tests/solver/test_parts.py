"""The loop's parts, each by itself: what it is handed is enough."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.snapshot import INPUT_SHAPES, NET, WEIGHTS, read_model, read_state
from forcereg.solver import build
from forcereg.solver.clipping import RankClipping
from forcereg.solver.pull import SOON, Pull
from forcereg.solver.rankwatch import RankWatch
from forcereg.solver.ready import check_ready
from forcereg.solver.run import Run, Teller
from forcereg.solver.saving import provenance, write_pair
from forcereg.solver.snapshots import Snapshots
from forcereg.solver.trouble import advice, not_finite
from forcereg.system.capture import WARM_UP
from tests.small_nets import inputs, ip
from tests.solver.nets import REGRESSION, Recorder, batch, batches
from tests.solver.parts import Parts, parts
from tests.solver.tape import Tape

NET_TEXT = REGRESSION.replace("PARAMS", "param { lr_mult: 1 force_mult: 1 }")


def trained(made: Parts, count: int = 3, rate: float = 0.1) -> Parts:
    """The same behind `count` iterations."""
    for at in range(count):
        made.steps.run(at, rate, lambda sub, at=at: batches(at, sub), lambda outputs: None)  # type: ignore[misc]
    return made


def weight(made: Parts) -> Tensor:
    return made.nets.train.params["ip"][0].detach().clone()


# -- the run


def test_a_run_knows_where_snapshots_go(tmp_path: Path) -> None:
    assert parts(NET_TEXT, 'snapshot_prefix: "a/b"', tmp_path).run.prefix() == tmp_path / "a/b"
    with pytest.raises(ForceregError, match=r"^s: snapshot_prefix is missing; set for example"):
        Run(parts(NET_TEXT).run.param, "s").prefix()


def test_who_is_told() -> None:
    first, later = Recorder(), Recorder()
    tell = Teller([first])
    tell.emit("note", text="a")
    tell.observers.append(later)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell.warn("b")
        Teller(rank=1).warn("c")
    assert first.story() == ["note", "warning"] and later.texts() == ["b"]
    with pytest.warns(UserWarning, match="^d$"):
        Teller().warn("d")


def test_nets_have_the_names_of_states() -> None:
    nets = parts(NET_TEXT, tests=2).nets
    assert list(nets.named) == ["train", "test_0", "test_1"] and list(nets) == list(nets.named.values())
    assert all(net.params["ip"][0] is nets.train.params["ip"][0] for net in nets)


# -- iterations


def test_steps_train() -> None:
    made = parts(NET_TEXT, "momentum: 0.9 average_loss: 3")
    losses = []
    for at in range(30):
        made.steps.run(at, 0.05, lambda sub: batch(), lambda outputs: losses.append(outputs["loss"].item()))
    assert len(losses) == 30 and losses[-1] < losses[0]
    assert float(made.steps.losses.mean()) == pytest.approx(np.mean(losses[-3:]))
    assert made.steps.tally(made.nets.train) is None and made.steps.scale is None


def test_steps_measure_what_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Tensor]] = []
    for tape in (None, Tape()):
        monkeypatch.setattr(build, "recorder_for", lambda device, tape=tape: tape)
        made = parts(NET_TEXT, "force_decay: 0.1", cuda_graph=True)
        made.steps.updater.on_host = False
        norms = list[Tensor]()
        for at in range(WARM_UP + 3):
            take = {"force": lambda measured: norms.append(measured.clone())}  # noqa: B023
            made.steps.run(at, 0.1, lambda sub: batch(), lambda outputs: None, measures=take if at % 2 else {})
        found.append([*norms, weight(made)])
        assert len(norms) == (WARM_UP + 3) // 2 and all(one.shape == (2, 1) and one.min() > 0 for one in norms)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_steps_go_away_with_their_last_holder() -> None:
    import gc
    import weakref

    gc.disable()
    try:
        made = trained(parts(NET_TEXT))
        alive = weakref.ref(made.steps)
        del made
        assert alive() is None
    finally:
        gc.enable()


# -- snapshots


def watch(made: Parts) -> RankWatch:
    return RankWatch(made.run.tell, 0, False)


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_a_pair_is_written(form: str, tmp_path: Path) -> None:
    settings = f'snapshot_prefix: "s" snapshot_format: {form} momentum: 0.5 snapshot_diff: true'
    made = trained(parts(NET_TEXT, settings, tmp_path))
    path = write_pair(made.run, made.nets.train, made.steps, 3, 1, {"own": 7}, {"more": 8})
    model, state = read_model(path), read_state(str(path).replace("caffemodel", "solverstate"))
    np.testing.assert_array_equal(model.layers["ip"][0], weight(made).numpy())
    assert (state.iteration, state.current_step) == (3, 1) and state.goes_with(model)
    assert set(state.extra or {}) == {"own", "more", "history", WEIGHTS}
    assert [event.iteration for event in made.recorder.of("snapshot")] == [3]


def test_where_a_model_comes_from() -> None:
    made = parts(NET_TEXT, "base_lr: 0.5")
    said = provenance(made.nets.train, made.run.param, 5)
    assert said[NET] == made.nets.train.spec.text and said["forcereg_seed"] == "5"
    assert "base_lr: 0.5" in said["forcereg_solver"] and '"x": [4, 3]' in said[INPUT_SHAPES]


def test_snapshots_go_on_exactly(tmp_path: Path) -> None:
    settings = 'snapshot_prefix: "s" snapshot_format: HDF5 momentum: 0.5 average_loss: 4 lr_policy: "step" stepsize: 2'
    first = trained(parts(NET_TEXT, settings, tmp_path))
    saved = Snapshots(first.run, first.nets, first.steps, watch(first), keep=1)
    model = saved.write(3, 1, saved.extra())
    other = trained(parts(NET_TEXT, settings, tmp_path), 1)
    snapshots = Snapshots(other.run, other.nets, other.steps, watch(other))
    state = read_state(str(model).replace("caffemodel", "solverstate"))
    assert snapshots.take_over(state, read_model(model)) == 1 and snapshots.last == model == saved.last
    assert torch.equal(weight(other), weight(first))
    assert float(other.steps.losses.mean()) == float(first.steps.losses.mean())
    assert all(map(torch.equal, other.steps.updater.history[0], first.steps.updater.history[0]))
    saved.write(4, 2, saved.extra())
    assert [path.name for path in sorted(tmp_path.glob("*.caffemodel.h5"))] == ["s_iter_4.caffemodel.h5"]


def test_weights_go_by_name(tmp_path: Path) -> None:
    first = trained(parts(NET_TEXT, 'snapshot_prefix: "s" snapshot_format: HDF5', tmp_path))
    snapshots = Snapshots(first.run, first.nets, first.steps, watch(first))
    path = snapshots.write(0, 0, snapshots.extra())
    other = parts(NET_TEXT, tests=1)
    report = Snapshots(other.run, other.nets, other.steps, watch(other)).load_weights(path)
    assert not report.fresh
    assert torch.equal(weight(other), weight(first)) and other.recorder.story() == ["weights"]


# -- before a run, and behind one that went wrong


@pytest.mark.parametrize(
    ("settings", "given", "says"),
    [
        ("", True, None),
        ("", False, "needs input blobs x, y"),
        ('snapshot: 1 snapshot_prefix: "gone/s"', True, "there is no folder|No such file"),
    ],
)
def test_what_would_fail_is_known_before(settings: str, given: bool, says: str | None, tmp_path: Path) -> None:
    made = parts(NET_TEXT, f"max_iter: 3 snapshot_after_train: false {settings}", tmp_path)
    if says is None:
        check_ready(made.run, made.nets, 1, 0, given)
        return
    with pytest.raises(ForceregError, match=says):
        check_ready(made.run, made.nets, 1, 0, given)


def test_the_force_is_measured_now_and_then() -> None:
    recorder = Recorder()
    pull = Pull(Teller([recorder]), 0.5, tested=False)
    assert pull.due(0, tested=False, display=True) and not pull.due(0, tested=True, display=False)
    pull.take(0, ["a", "b"], torch.tensor([[3.0, 4.0], [0.0, 1e-5]]))
    assert pull.last == pytest.approx(2e-6) and recorder.texts() == []
    assert not pull.due(1, tested=False, display=True) and pull.due(SOON, tested=False, display=True)
    pull.take(SOON, ["a", "b"], torch.tensor([[3.0, 4.0], [0.0, 1e-5]]))
    (text,) = recorder.texts()
    assert text.endswith(
        f"at iteration {SOON}: the force has done next to nothing so far; raise force_decay (it is 0.5)"
    )
    assert [one["ratio"] for one in recorder.of("force")[0].layers] == pytest.approx([0, 2.5e-6])
    assert Pull(Teller(), 0.5, tested=True).due(7, tested=True, display=False)


def test_advice() -> None:
    made = parts(NET_TEXT, "base_lr: 1 force_decay: 0.5")
    poisoned = {**batch(), "x": torch.full((4, 3), math.inf)}
    assert "the data isn't finite: input 'x' of iteration 2" in advice(made.run, made.nets.train, poisoned, 2, None)
    first = advice(made.run, made.nets.train, batch(), 0, None)
    assert first == ("no update came before, so it isn't base_lr or a force: look at the data's scale and the fillers")
    assert advice(made.run, made.nets.train, batch(), 2, None) == "lower base_lr or set clip_gradients"
    pull = Pull(Teller(), 0.5, tested=False)
    pull.last = 2.0
    forced = advice(made.run, made.nets.train, batch(), 2, pull)
    assert "(force_decay 0.5, last 2 times as large as the gradient)" in forced
    assert str(not_finite("s", "it is bad", None, "x")) == "s: it is bad; there is no snapshot yet; x"
    assert "the last good snapshot is m" in str(not_finite("s", "it is bad", Path("m"), "x"))


# -- rank clipping

CHAIN = "\n".join(
    [
        inputs(x=(4, 6)),
        ip("fc_lowrank", "x", "r", 4, "", "bias_term: false"),
        ip("fc_linear", "r", "y", 5),
    ]
)


def test_ranks_are_clipped(tmp_path: Path) -> None:
    made = parts(CHAIN, 'test_interval: 2 snapshot_prefix: "s" momentum: 0.9', tmp_path, tests=1)
    clipping = RankClipping(made.run, made.nets, made.steps, 0.9)
    first, second = (made.nets.train.params[name][0] for name in ("fc_lowrank", "fc_linear"))
    with torch.no_grad():
        first[2:] *= 1e-3
    product = second.detach() @ first.detach()
    assert clipping.ranks == {"fc": 4} and clipping.due(2) and not clipping.due(3)
    clipping.clip(2)
    assert clipping.ranks["fc"] < 4 and not clipping.due(2) and clipping.last == 2
    first, second = (made.nets.train.params[name][0].detach() for name in ("fc_lowrank", "fc_linear"))
    assert float((second @ first - product).norm() / product.norm()) < 0.1**0.5 + 1e-6
    assert [tuple(one.shape) for one in made.steps.updater.weights[:2]] == [tuple(first.shape), tuple(second.shape)]
    assert made.nets.tests[0].params["fc_linear"][0] is made.nets.train.params["fc_linear"][0]
    clipping.finish(4)
    assert (tmp_path / "s_clipped.prototxt").read_text() == made.nets.train.spec.text
    assert made.recorder.story() == ["ranks 2", "ranks 4", "note"]


def test_what_rank_clipping_needs() -> None:
    made = parts(CHAIN, "test_interval: 0")
    with pytest.raises(ForceregError, match=r"^s: rank clipping looks at ranks every test_interval"):
        RankClipping(made.run, made.nets, made.steps, 0.9)
    other = parts(NET_TEXT, "test_interval: 1")
    with pytest.raises(ForceregError, match="rank clipping needs layers X_lowrank -> X_linear"):
        RankClipping(other.run, other.nets, other.steps, 0.9)
