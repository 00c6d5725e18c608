"""Going on from a snapshot is as if nothing had happened: weights, history, data, randomness, loss window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.solver.loop import Solver
from tests.solver.nets import Recorder, batches, blobs_of, regression, write_images, write_solver

EXTRA = (
    'momentum: 0.9 weight_decay: 0.001 lr_policy: "multistep" gamma: 0.5 stepvalue: 5 stepvalue: 5 stepvalue: 9 '
    "average_loss: 4 display: 1 test_iter: 1 test_interval: 3 test_compute_loss: true "
    'force_decay: 0.001 force_type: "Constant" snapshot_prefix: "s" max_iter: 14 snapshot: '
)


def train(root: Path, every: int, prefix: str = "s", resume: Path | None = None, **options: object) -> Recorder:
    """A whole run of the image net with a snapshot `every` iterations, from the start or from `resume`."""
    recorder = Recorder()
    extra = EXTRA.replace('"s"', f'"{prefix}"') + str(every)
    solver = Solver(write_solver(root, extra), observers=[recorder], **options)
    if resume is not None:
        solver.restore(resume)
    solver.solve()
    return recorder


def told(recorder: Recorder, since: int) -> list[tuple[object, ...]]:
    """Every number told from iteration `since` on: losses, rates, outputs."""
    return [
        (e.kind, e.iteration, e.fields.get("loss"), e.fields.get("rate"), tuple(e.fields.get("outputs", ())))
        for e in recorder.events
        if e.kind in ("train", "rate", "test", "final", "step") and e.iteration >= since
    ]


def contents(path: Path) -> dict[str, object]:
    """All datasets of an HDF5 file, but the name of the model."""
    found: dict[str, object] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    found.pop("learned_net", None)
    return found


def assert_same(one: Path, other: Path) -> None:
    """Two HDF5 files hold the same bytes under the same names."""
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name in first:
        assert np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes(), name


@pytest.mark.parametrize("at", [5, 6, 7], ids=lambda at: f"at-{at}")
@pytest.mark.parametrize("budget", [1 << 30, 1], ids=["decoded", "streamed"])
def test_resume_is_bit_for_bit(at: int, budget: int, tmp_path: Path) -> None:
    """At 5 and 6 the two equal stepvalues are half taken; tests leave their data in the middle."""
    write_images(tmp_path)
    whole = train(tmp_path, at, budget=budget)
    resumed = train(tmp_path, at, "again", tmp_path / f"s_iter_{at}.solverstate.h5", budget=budget)
    assert not resumed.texts()
    assert told(resumed, at) == told(whole, at)
    assert len(told(resumed, at)) >= 18
    for kind in ("caffemodel", "solverstate"):
        assert_same(tmp_path / f"s_iter_14.{kind}.h5", tmp_path / f"again_iter_14.{kind}.h5")


@pytest.mark.parametrize("request_", ["snapshot_requested", "stop_requested"])
def test_resume_from_the_middle_of_a_test_runs_it_again(request_: str, tmp_path: Path) -> None:
    """The state has the test data where the test began, not where the request found it."""
    write_images(tmp_path)
    extra = EXTRA.replace("test_iter: 1", "test_iter: 3 test_iter: 2") + "0"
    path = write_solver(tmp_path, extra)

    def train(request: str | None, resume: Path | None = None) -> Recorder:
        recorder = Recorder()
        solver = Solver(path, observers=[recorder])
        if resume is not None:
            solver.restore(resume)
        seen = [0]

        def at_second_batch(index: int, between: Callable[[int], bool] = solver._between_batches) -> bool:
            seen[0] += solver.iter == 6
            if request is not None and seen[0] == 5:  # the second batch of the second net
                setattr(solver, request, True)
            return between(index)

        solver._between_batches = at_second_batch  # type: ignore[method-assign]
        solver.solve()
        return recorder

    whole = train(None)
    interrupted = train(request_)
    assert interrupted.of("snapshot")[0].iteration == 6
    resumed = train(None, tmp_path / "s_iter_6.solverstate.h5")
    assert told(resumed, 6) == told(whole, 6)


def test_seed_of_the_resuming_run_does_not_matter(tmp_path: Path) -> None:
    write_images(tmp_path)
    whole = train(tmp_path, 7)
    recorder = Recorder()
    solver = Solver(write_solver(tmp_path, EXTRA + "7 random_seed: 99"), observers=[recorder])
    solver.restore(tmp_path / "s_iter_7.solverstate.h5")
    solver.solve()
    assert told(recorder, 7) == told(whole, 7)


def test_step_goes_on_after_restore(tmp_path: Path) -> None:
    write_images(tmp_path)
    path = write_solver(tmp_path, EXTRA + "0")
    whole = Solver(path, observers=[Recorder()])
    expected = [float(whole.step(1)) for _ in range(8)]
    half = Solver(path, observers=[Recorder()])
    half.step(4)
    model = half.snapshot()
    half.step(3)
    half.restore(tmp_path / "s_iter_4.solverstate.h5")
    assert model == tmp_path / "s_iter_4.caffemodel.h5"
    assert (half.iter, half.last_snapshot) == (4, model)
    assert [float(half.step(1)) for _ in range(4)] == expected[4:]
    for found, wanted in zip(blobs_of(half).values(), blobs_of(whole).values(), strict=True):
        assert torch.equal(found, wanted)


def as_caffe_writes(path: Path) -> None:
    """Takes away from a state what Caffe would not have written."""
    state = snapshot.read_state(path)
    snapshot.write_state(path, state.iteration, state.current_step, state.learned_net, state.history, None)


def test_state_that_caffe_wrote_restarts_the_data_with_one_warning(tmp_path: Path) -> None:
    write_images(tmp_path)
    train(tmp_path, 7)
    state = tmp_path / "s_iter_7.solverstate.h5"
    as_caffe_writes(state)
    recorder = Recorder()
    solver = Solver(write_solver(tmp_path, EXTRA + "0"), observers=[recorder])
    solver.restore(state)
    (text,) = recorder.texts()
    assert "written by Caffe" in text
    assert "the data starts from the beginning" in text
    assert (solver.iter, solver.current_step) == (7, 2)
    assert {feed.state_dict()["cursor"] for net in (solver.net, *solver.test_nets) for feed in net.feeds.values()} == {
        0
    }
    solver.step(1)


def test_data_position_follows_the_layers_name(tmp_path: Path) -> None:
    """A renamed data layer starts from the beginning and says so."""
    write_images(tmp_path)
    train(tmp_path, 7)
    net = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(net.replace('name: "data"', 'name: "input"', 1))
    recorder = Recorder()
    Solver(write_solver(tmp_path, EXTRA + "0"), observers=[recorder]).restore(tmp_path / "s_iter_7.solverstate.h5")
    (text,) = recorder.texts()
    assert "no position for data layer 'train/input'" in text


def test_keep_leaves_the_newest_pairs(tmp_path: Path) -> None:
    write_images(tmp_path)
    train(tmp_path, 3, keep=2)
    left = sorted(path.name for path in tmp_path.glob("s_iter_*"))
    assert left == sorted(f"s_iter_{i}.{kind}.h5" for i in (12, 14) for kind in ("caffemodel", "solverstate"))


@pytest.mark.parametrize("where", ["as-written", "under-the-root", "beside-the-state"])
def test_learned_net_is_found(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, moved = tmp_path / "home", tmp_path / "moved"
    home.mkdir()
    moved.mkdir()
    solver, _ = regression(home, 'snapshot_prefix: "s"')
    solver.step(2, batches)
    model = solver.snapshot()
    state = home / "s_iter_2.solverstate.h5"
    monkeypatch.chdir(home if where == "as-written" else tmp_path)
    if where == "beside-the-state":
        shutil.move(model, moved)
    state = Path(shutil.move(state, moved))
    again, _ = regression(home, 'snapshot_prefix: "s"')
    again.restore(state)
    for found, wanted in zip(blobs_of(again).values(), blobs_of(solver).values(), strict=True):
        assert torch.equal(found, wanted)


def test_learned_net_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    solver, _ = regression(tmp_path, 'snapshot_prefix: "s"')
    solver.snapshot().unlink()
    with pytest.raises(ForceregError, match="in none of these places: s_iter_0") as caught:
        solver.restore("s_iter_0.solverstate.h5")
    assert "\n" not in str(caught.value)


def test_state_of_another_net_changes_nothing(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, 'snapshot_prefix: "s"')
    solver.step(1, batches)
    solver.snapshot()
    net = (tmp_path / "net.prototxt").read_text().replace("num_output: 2", "num_output: 2 bias_term: false")
    other, _ = regression(tmp_path, net=net)
    before = blobs_of(other)
    with pytest.raises(ForceregError, match="holds 2 history blobs, this net and solver type need 1"):
        other.restore(tmp_path / "s_iter_1.solverstate.h5")
    assert other.iter == 0
    assert all(torch.equal(blob, before[name]) for name, blob in blobs_of(other).items())


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_a_model_that_does_not_fit_changes_nothing(form: str, tmp_path: Path) -> None:
    """Not even the history, which the state has and which fits."""
    extra = f'momentum: 0.9 snapshot_prefix: "s" snapshot_format: {form}'
    solver, _ = regression(tmp_path, extra)
    solver.step(2, batches)
    model = solver.snapshot()
    blobs = {"ip": {0: np.ones((3, 2)), 1: np.ones(2)}}
    snapshot.write_model(model, blobs, net=snapshot.net_message(solver.net.spec) if form == "BINARYPROTO" else None)
    other, _ = regression(tmp_path, extra)
    before = blobs_of(other)
    with pytest.raises(ForceregError, match=r"shape \(3, 2\) in the file, \(2, 3\) in the net"):
        other.restore(model.with_name(model.name.replace("caffemodel", "solverstate")))
    assert (other.iter, other.last_snapshot) == (0, None)
    assert not any(tensor.any() for slot in other.updater.history for tensor in slot)
    assert all(torch.equal(blob, before[name]) for name, blob in blobs_of(other).items())


ADAPTIVE = 'type: "AdaGrad"'


@pytest.mark.parametrize("caffes", [False, True], ids=["ours", "caffes"])
@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ("momentum: 0.9", ADAPTIVE, "its history is velocity, type AdaGrad keeps sum of squares; use the net and"),
        (ADAPTIVE, 'type: "RMSProp"', "its history is sum of squares, type RMSProp keeps mean of squares"),
        ('type: "Adam"', 'type: "AdaDelta"', "its history is mean, mean of squares, type AdaDelta keeps mean of"),
        ("momentum: 0.9", 'type: "Nesterov" momentum: 0.9', None),
        (ADAPTIVE, ADAPTIVE, None),
    ],
    ids=["velocity-as-squares", "sum-as-mean", "adam-as-adadelta", "sgd-as-nesterov", "same"],
)
def test_a_history_of_another_solver_type(
    first: str, then: str, says: str | None, caffes: bool, tmp_path: Path
) -> None:
    """Ours say what they hold; of Caffe's at least squares can't be negative."""
    solver, _ = regression(tmp_path, f'{first} snapshot_prefix: "s"')
    solver.step(2, batches)
    solver.snapshot()
    state = tmp_path / "s_iter_2.solverstate.h5"
    negative = any((values < 0).any() for values in snapshot.read_state(state).history)
    if caffes:
        as_caffe_writes(state)
        says = "is negative in places, type .* keeps squares there; use" if says and negative else None
    other, _ = regression(tmp_path, then)
    if says is None:
        other.restore(state)
        return
    with pytest.raises(ForceregError, match=says) as caught:
        other.restore(state)
    assert str(caught.value).startswith(f"{state}: ") and "\n" not in str(caught.value)
    assert other.iter == 0 and not any(tensor.any() for slot in other.updater.history for tensor in slot)


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_another_runs_model_of_the_same_name_is_not_taken(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair was moved away and the run started anew: now the state names the new run's model."""
    monkeypatch.chdir(tmp_path)
    extra = f'snapshot_prefix: "s" snapshot_format: {form}'
    solver, _ = regression(tmp_path, extra)
    solver.step(2, batches)
    model = solver.snapshot().name
    kept = blobs_of(solver)
    (tmp_path / "kept").mkdir()
    for path in tmp_path.glob("s_iter_2.*"):
        shutil.move(path, tmp_path / "kept")
    solver, _ = regression(tmp_path, f"{extra} random_seed: 8")
    solver.step(2, batches)
    solver.snapshot()
    again, recorder = regression(tmp_path, extra)
    state = tmp_path / "kept" / model.replace("caffemodel", "solverstate")
    again.restore(state)
    assert again.last_snapshot == tmp_path / "kept" / model and recorder.texts() == []
    assert all(torch.equal(blob, kept[name]) for name, blob in blobs_of(again).items())
    (tmp_path / "kept" / model).unlink()
    again.restore(state)
    (text,) = recorder.texts()
    assert text == f"{model}: holds other weights than {state} was saved with; training goes on with these"


def test_a_data_layer_of_another_type_starts_from_the_beginning(tmp_path: Path) -> None:
    write_images(tmp_path)
    train(tmp_path, 7)
    start, _, rest = (tmp_path / "net.prototxt").read_text().split("layer {", 2)
    dummy = """
    layer {
      name: "data" type: "DummyData" top: "data" top: "label" include { phase: TRAIN }
      dummy_data_param { shape { dim: 6 dim: 1 dim: 6 dim: 6 } shape { dim: 6 } }
    }
    """
    (tmp_path / "net.prototxt").write_text(f"{start}{dummy}layer {{{rest}")
    recorder = Recorder()
    solver = Solver(write_solver(tmp_path, EXTRA + "0"), observers=[recorder])
    solver.restore(tmp_path / "s_iter_7.solverstate.h5")
    (text,) = recorder.texts()
    assert "no position for data layer 'train/data'; it starts from the beginning" in text


def test_resume_of_a_finished_run(tmp_path: Path) -> None:
    """No steps, the snapshot stays as it is, the actions at the end happen."""
    write_images(tmp_path)
    extra = 'snapshot_prefix: "s" max_iter: 6 display: 3 test_iter: 1 test_interval: 3'
    path = write_solver(tmp_path, extra)
    first = Recorder()
    Solver(path, observers=[first]).solve()
    files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("*.h5")}
    assert len(files) == 2
    again = Recorder()
    solver = Solver(path, observers=[again])
    solver.restore(tmp_path / "s_iter_6.solverstate.h5")
    solver.solve()
    assert solver.iter == 6
    assert again.story() == ["restore 6", "start", "final 6", "test_start 6", "test 6", "done"]
    assert [e.outputs for e in again.of("test")] == [e.outputs for e in first.of("test")][-1:]
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("*.h5")} == files


def test_snapshot_tells_where_it_comes_from(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, 'snapshot_prefix: "s" snapshot_diff: true')
    before = blobs_of(solver)
    solver.step(1, batches)
    model = snapshot.read_model(solver.snapshot())
    assert model.attrs["forcereg_net"] == (tmp_path / "net.prototxt").read_text()
    assert 'net: "net.prototxt"' in model.attrs["forcereg_solver"]
    assert model.attrs["forcereg_seed"] == "7"
    assert model.attrs["forcereg_input_shapes"] == '{"x": [4, 3], "y": [4, 2]}'
    state = snapshot.read_state(tmp_path / "s_iter_1.solverstate.h5")
    assert state.learned_net == "s_iter_1.caffemodel.h5"
    after = blobs_of(solver)
    with h5py.File(model.path) as file:
        assert set(file["data"]) == {spec.name for spec in solver.net.spec.layers}
        for name in ("ip/0", "ip/1"):
            update = (before[name] - after[name]).numpy()
            np.testing.assert_allclose(file[f"diff/{name}"][()], update, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(file[f"data/{name}"][()], after[name])
