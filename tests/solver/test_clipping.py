"""Rank clipping in training: what it does to nets and history, for every solver type; resuming; what is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.lowrank.clipping import Kind, cut
from forcereg.net.load import load_net
from forcereg.report.curves import read_run
from forcereg.report.plot import panel_of
from forcereg.solver.jsonlog import JsonLog
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.resume import resume_latest
from tests.solver.clipping_nets import EXTRA, clipped_solver, ranks_told, write_chains
from tests.solver.nets import Recorder, blobs_of, write_solver
from tests.solver.test_resume import assert_same, told

TYPES = {
    "SGD": "momentum: 0.9 base_lr: 0.02",
    "Nesterov": "momentum: 0.9 base_lr: 0.02",
    "AdaGrad": "base_lr: 0.01",
    "RMSProp": "rms_decay: 0.9 base_lr: 0.001",
    "AdaDelta": "momentum: 0.95 delta: 1e-6 base_lr: 1",
    "Adam": "momentum: 0.9 base_lr: 0.003",
}


def of_type(kind: str, more: str = "max_iter: 8") -> str:
    return (
        f'type: "{kind}" {TYPES[kind]} weight_decay: 0.001 test_iter: 1 test_interval: 3 display: 1 '
        f'snapshot_prefix: "s" {more}'
    )


def product(solver: Solver, name: str) -> Tensor:
    """What a pair computes: the weight of conv (groups, N, K) or fc, float64."""
    first, second = (solver.net.params[f"{name}_{part}"][0].detach().double() for part in ("lowrank", "linear"))
    if name == "fc":
        return (first @ second).mT[None]
    return second.reshape(2, 4, -1) @ first.reshape(2, len(first) // 2, -1)


def best(whole: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    return left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]


def history(solver: Solver, layer: str) -> list[Tensor]:
    return [tensor.double().clone() for _, tensor in solver.updater.history_of(layer, 0)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chains(tmp_path_factory.mktemp("chains"))


KINDS = {
    "SGD": [Kind.GRADIENT],
    "Nesterov": [Kind.GRADIENT],
    "AdaGrad": [Kind.SQUARED_GRADIENT],
    "RMSProp": [Kind.SQUARED_GRADIENT],
    "AdaDelta": [Kind.SQUARED_GRADIENT, Kind.SQUARED_STEP],
    "Adam": [Kind.GRADIENT, Kind.SQUARED_GRADIENT],
}


@pytest.mark.parametrize("kind", TYPES)
def test_weights_and_history_are_projected(kind: str, root: Path) -> None:
    """Both nets then compute the best approximation, with the same weights; the other layers keep all they have."""
    solver, _ = clipped_solver(root, of_type(kind), share=0.7, until=3)
    solver.step(4)
    assert solver.clipping is not None and solver.clipping.ranks == {"conv": 6, "fc": 7}
    solver.clipping.until = None
    before, wholes = blobs_of(solver), {name: product(solver, name) for name in ("conv", "fc")}
    kept = {layer: history(solver, layer) for layer in ("stem", "fc_lowrank", "fc_linear", "conv_lowrank")}
    bias = solver.updater.history_of("conv_linear", 1)
    solver.clipping.clip(solver.iter)
    ranks = solver.clipping.ranks
    assert 1 <= ranks["conv"] < 6 and 1 <= ranks["fc"] < 7
    torch.testing.assert_close(product(solver, "conv"), best(wholes["conv"], ranks["conv"] // 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(product(solver, "fc"), best(wholes["fc"], ranks["fc"]), atol=1e-6, rtol=0)
    maps = cut(before["fc_lowrank/0"].mT[None], before["fc_linear/0"].mT[None], 0.7)
    assert maps is not None and maps.rank == ranks["fc"]
    for what, one, other, first, second in zip(
        KINDS[kind], kept["fc_lowrank"], kept["fc_linear"], history(solver, "fc_lowrank"), history(solver, "fc_linear"),
        strict=True,
    ):  # fmt: skip
        expected = maps.project(what, one.mT[None], other.mT[None])
        torch.testing.assert_close(first, expected[0][0].mT, atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(second, expected[1][0].mT, atol=1e-7, rtol=1e-5)
        assert first.abs().max() > 0
    for found, old in zip(history(solver, "stem"), kept["stem"], strict=True):
        assert torch.equal(found, old)
    assert all(a is b for (_, a), (_, b) in zip(solver.updater.history_of("conv_linear", 1), bias, strict=True))
    (test_net,) = solver.test_nets
    for name, blobs in solver.net.params.items():
        assert all(a is b for a, b in zip(blobs, test_net.params[name], strict=True))
    assert solver.net.shapes["conv_lowrank"] == (6, ranks["conv"], 4, 4)
    assert test_net.shapes["fc_lowrank"] == (5, ranks["fc"])
    solver.step(4)
    assert all(blob.isfinite().all() for blob in blobs_of(solver).values())
    assert not torch.equal(product(solver, "fc"), best(wholes["fc"], ranks["fc"]))


def test_a_look_at_each_test_interval(root: Path) -> None:
    """Before the tests, from the first on; at iteration 0 and from `until` on it only tells."""
    solver, recorder = clipped_solver(root, share=0.7, until=7)
    solver.solve()
    looks = ranks_told(recorder)
    assert [at for at, _ in looks] == [0, 3, 6, 9, 12, 14]
    assert looks[0][1] == {"conv": 6, "fc": 7}
    assert looks[1][1]["fc"] < 7 and looks[1][1]["conv"] < 6
    assert looks[2][1] == looks[3][1] == looks[4][1]
    story = [kind for kind in recorder.story() if kind.startswith(("ranks", "test ", "train"))]
    assert story.index("train 2") < story.index("ranks 3") < story.index("test 3") < story.index("train 3")
    cuts = [layer for event in recorder.of("ranks") for layer in event.layers if "before" in layer]
    assert cuts and all(layer["rank"] < layer["before"] and 0.7 <= layer["kept"] <= 1 for layer in cuts)


def test_without_test_nets(root: Path) -> None:
    solver, recorder = clipped_solver(root, "base_lr: 0.02 test_interval: 2", share=0.7)
    solver.step(5)
    assert [at for at, _ in ranks_told(recorder)] == [0, 2, 4]
    assert ranks_told(recorder)[1][1]["fc"] < 7


def test_no_second_look_in_one_iteration(root: Path) -> None:
    """A stop between the tests leaves the loop before the iteration; going on must not cut again."""
    solver, recorder = clipped_solver(root, share=0.7)
    solver.step(3)
    solver.clipping.clip(solver.iter)  # type: ignore[union-attr]
    ranks = solver.clipping.ranks  # type: ignore[union-attr]
    solver.step(1)
    assert ranks_told(recorder)[-1] == (3, ranks)


# -- resume


def train(root: Path, every: int, prefix: str, resume: Path | str | None = None, binary: bool = False) -> Recorder:
    """A whole run with a snapshot `every` iterations, or the rest of one."""
    extra = EXTRA.replace('"s"', f'"{prefix}"') + str(every) + (" snapshot_format: BINARYPROTO" if binary else "")
    solver, recorder = clipped_solver(root, extra, share=0.7)
    if resume == "auto":
        assert resume_latest(solver) is not None
    elif resume is not None:
        solver.restore(resume)
    solver.solve()
    return recorder


@pytest.mark.parametrize("at", [5, 6, 7, 12], ids=lambda at: f"at-{at}")
def test_resume_is_bit_for_bit(at: int, tmp_path: Path) -> None:
    """From the net as it is in the file, with all its ranks. At 6 the snapshot comes before the look."""
    write_chains(tmp_path)
    whole = train(tmp_path, at, "s")
    assert any("before" in layer for e in whole.of("ranks") if e.iteration < at for layer in e.layers)
    resumed = train(tmp_path, at, "again", tmp_path / f"s_iter_{at}.solverstate.h5")
    assert not resumed.texts()
    assert told(resumed, at) == told(whole, at)
    assert ranks_told(resumed) == [look for look in ranks_told(whole) if look[0] >= at]
    for kind in ("caffemodel", "solverstate"):
        assert_same(tmp_path / f"s_iter_14.{kind}.h5", tmp_path / f"again_iter_14.{kind}.h5")
    assert (tmp_path / "s_clipped.prototxt").read_text() == (tmp_path / "again_clipped.prototxt").read_text()


@pytest.mark.parametrize("binary", [False, True], ids=["hdf5", "binary"])
def test_resume_auto(binary: bool, tmp_path: Path) -> None:
    write_chains(tmp_path)
    whole = train(tmp_path, 7, "s", binary=binary)
    ending = "" if binary else ".h5"
    last = tmp_path / f"s_iter_14.caffemodel{ending}"
    expected = snapshot.read_model(last)
    for path in tmp_path.glob("s_iter_14*"):
        path.unlink()
    resumed = train(tmp_path, 7, "s", "auto", binary=binary)
    assert told(resumed, 7) == told(whole, 7)
    found = snapshot.read_model(last)
    for name, blobs in expected.layers.items():
        assert all(np.array_equal(blob, found.layers[name][index]) for index, blob in blobs.items()), name


@pytest.mark.parametrize(
    ("kind", "more", "amp"), [("AdaDelta", "", None), ("Adam", "iter_size: 2 ", "bf16"), ("SGD", "", "fp16")]
)
def test_resume_of_other_settings(kind: str, more: str, amp: str | None, tmp_path: Path) -> None:
    write_chains(tmp_path)
    runs = []
    for resume in (None, tmp_path / "s_iter_5.solverstate.h5"):
        extra = of_type(kind, f"{more}max_iter: 8 snapshot: 5")
        solver, recorder = clipped_solver(tmp_path, extra, share=0.7, amp=amp)
        if resume:
            solver.restore(resume)
        solver.solve()
        runs.append((told(recorder, 5), blobs_of(solver)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(blob, runs[1][1][name]) for name, blob in runs[0][1].items())


def test_resume_from_among_tests_does_not_cut_again(tmp_path: Path) -> None:
    """That snapshot holds what was cut before the tests."""
    write_chains(tmp_path)
    whole = train(tmp_path, 0, "s")
    solver, recorder = clipped_solver(tmp_path, share=0.7)

    def between(index: int, original: Callable[[int], bool] = solver._between_batches) -> bool:
        solver.stop_requested = solver.stop_requested or solver.iter == 6
        return original(index)

    solver._between_batches = between  # type: ignore[method-assign]
    solver.solve()
    assert [e.iteration for e in recorder.of("snapshot")] == [6]
    assert not any("the net" in event.text for event in recorder.of("note"))
    resumed = train(tmp_path, 0, "s", tmp_path / "s_iter_6.solverstate.h5")
    assert told(resumed, 6) == told(whole, 6)
    assert ranks_told(resumed) == ranks_told(whole)[3:]


def test_an_earlier_state_brings_its_ranks_back(tmp_path: Path) -> None:
    write_chains(tmp_path)
    solver, _ = clipped_solver(tmp_path, share=0.7)
    solver.step(2)
    solver.snapshot()
    expected = [float(solver.step(1)) for _ in range(6)]
    ranks = solver.clipping.ranks  # type: ignore[union-attr]
    solver.restore(tmp_path / "s_iter_2.solverstate.h5")
    assert solver.clipping.ranks == {"conv": 6, "fc": 7} != ranks  # type: ignore[union-attr]
    assert [float(solver.step(1)) for _ in range(6)] == expected
    assert solver.clipping.ranks == ranks  # type: ignore[union-attr]


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    write_chains(tmp_path)
    solver, _ = clipped_solver(tmp_path, share=0.7)
    solver.step(5)
    model = snapshot.read_model(solver.snapshot())
    state = snapshot.read_state(tmp_path / "s_iter_5.solverstate.h5")
    model.layers["stem"][0] = model.layers["stem"][0][1:]  # type: ignore[index]
    other, _ = clipped_solver(tmp_path, share=0.7)
    other.step(1)
    before, momentum = blobs_of(other), history(other, "fc_lowrank")
    with pytest.raises(ForceregError, match="layer 'stem' blob 0: shape"):
        other.go_on_from(state, model)
    after = blobs_of(other)
    assert after.keys() == before.keys()
    assert all(torch.equal(blob, after[name]) for name, blob in before.items())
    assert all(torch.equal(a, b) for a, b in zip(momentum, history(other, "fc_lowrank"), strict=True))
    other.step(1)


def test_resume_without_the_option_says_so(tmp_path: Path) -> None:
    write_chains(tmp_path)
    train(tmp_path, 7, "s")
    solver = Solver(write_solver(tmp_path, EXTRA + "0"), observers=[Recorder()])
    with pytest.raises(ForceregError, match=r"expected \[.*; it was saved with --rank-clipping: give that again$"):
        solver.restore(tmp_path / "s_iter_7.solverstate.h5")


# -- what remains, and what is told


def test_the_net_that_remains(tmp_path: Path) -> None:
    """The written net, with the last weights, computes what the trained one does; so does the snapshot's own."""
    write_chains(tmp_path)
    solver, recorder = clipped_solver(tmp_path, share=0.7)
    solver.solve()
    (note,) = recorder.of("note")
    ranks = solver.clipping.ranks  # type: ignore[union-attr]
    path = tmp_path / "s_clipped.prototxt"
    assert note.text == (
        f"Ranks at the end: conv {ranks['conv']} of 6, fc {ranks['fc']} of 7; the net with these ranks is {path}"
    )
    weights = tmp_path / "s_iter_14.caffemodel.h5"
    assert snapshot.read_model(weights).attrs["forcereg_net"] == path.read_text()
    data = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = solver.test_nets[0](data=data, label=torch.zeros(5), blobs=["ip"])["ip"]
    net = load_net(path, weights, phase="TEST", input_shapes={"data": (5, 1, 6, 6), "label": (5,)})
    assert torch.equal(net(data=data, label=torch.zeros(5), blobs=["ip"])["ip"], expected)


def test_rank_history_in_logs_and_curves(tmp_path: Path) -> None:
    write_chains(tmp_path)
    solver, recorder = clipped_solver(tmp_path, share=0.7)
    glog, events = io.StringIO(), JsonLog(tmp_path / "log.jsonl")
    solver.observers += [GlogWriter(glog), events]
    solver.solve()
    events.close()
    (tmp_path / "log.txt").write_text(glog.getvalue())
    first = next(layer for event in recorder.of("ranks") for layer in event.layers if "before" in layer)
    line = f"rank of {first['layer']} = {first['rank']} (was {first['before']}, keeps {first['kept']:.4f})"
    assert f"] Iteration 3, {line}\n" in glog.getvalue()
    looks = ranks_told(recorder)
    for name in ("log.txt", "log.jsonl"):
        curve = read_run(tmp_path / name).curves["fc rank"]
        assert panel_of("fc rank") == "rank"
        assert (curve.iterations, curve.values) == ([at for at, _ in looks], [ranks["fc"] for _, ranks in looks])
    told_json = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert next(one for one in told_json if one["event"] == "ranks")["layers"][0] == {"layer": "conv", "rank": 6}


def test_rank_history_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from forcereg.solver.trackers.tensorboard import TensorBoard

    write_chains(tmp_path)
    solver, recorder = clipped_solver(tmp_path, share=0.7)
    board = TensorBoard(tmp_path / "logs")
    solver.observers.append(board)
    solver.solve()
    board.close()
    reader = EventAccumulator(str(tmp_path / "logs"))
    reader.Reload()
    assert [(e.step, e.value) for e in reader.Scalars("rank/conv")] == [
        (at, ranks["conv"]) for at, ranks in ranks_told(recorder)
    ]


def test_a_net_with_fewer_ranks_goes_on_from_a_state_with_more(tmp_path: Path) -> None:
    """Then the ranks that it began with are the state's."""
    write_chains(tmp_path)
    train(tmp_path, 2, "s")
    extra = EXTRA.replace('"s"', '"t"') + "0"
    solver = Solver(write_solver(tmp_path, extra, net='net: "s_clipped.prototxt"'))
    solver.clip_ranks(0.7)
    assert solver.clipping is not None
    few = solver.clipping.ranks
    whole = snapshot.read_model(tmp_path / "s_iter_2.caffemodel.h5").layers
    solver.restore(tmp_path / "s_iter_2.solverstate.h5")
    found = {"conv": len(whole["conv_lowrank"][0]), "fc": whole["fc_lowrank"][0].shape[1]}
    assert few != found == solver.clipping.full == solver.clipping.ranks
