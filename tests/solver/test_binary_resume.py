"""Snapshots in Caffe's binary format: a run goes on from them bit for bit, from any folder, and into HDF5 too."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.solver import saving
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.study.check import check_file
from tests.conftest import RunCli
from tests.solver.nets import Recorder, batches, blobs_of, regression, write_images, write_solver
from tests.solver.test_resume import EXTRA, told

BINARY = "snapshot_format: BINARYPROTO "
ENDS = {BINARY: "", "snapshot_format: HDF5 ": ".h5"}


def train(root: Path, every: int, form: str, prefix: str = "s", resume: Path | None = None, **options: Any) -> Recorder:
    """A whole run of the image net with snapshots of one format, from the start or from `resume`."""
    recorder = Recorder()
    extra = form + EXTRA.replace('"s"', f'"{prefix}"') + str(every)
    solver = Solver(write_solver(root, extra), observers=[recorder], **options)
    if resume is not None:
        solver.restore(resume)
    solver.solve()
    return recorder


def assert_same(one: Any, other: Any) -> None:
    """Two models or states, or parts of them, hold the same values bit for bit; paths and prefixes may differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"forcereg_solver"}:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    else:
        assert one == other


def parts(path: Path) -> dict[str, Any]:
    return {key: value for key, value in vars(snapshot.read(path)).items() if key not in ("path", "learned_net")}


@pytest.mark.parametrize("later", ENDS, ids=["to-binary", "to-hdf5"])
@pytest.mark.parametrize("form", ENDS, ids=["from-binary", "from-hdf5"])
def test_resume_is_bit_for_bit(form: str, later: str, tmp_path: Path) -> None:
    """Data position, mirroring and dropout, loss window, steps: all of it, in either format."""
    write_images(tmp_path)
    whole = train(tmp_path, 6, form)
    resumed = train(tmp_path, 6, later, "again", tmp_path / f"s_iter_6.solverstate{ENDS[form]}")
    assert not resumed.texts()
    assert told(resumed, 6) == told(whole, 6)
    for kind in ("caffemodel", "solverstate"):
        one = tmp_path / f"s_iter_14.{kind}{ENDS[form]}"
        assert_same(parts(one), parts(tmp_path / f"again_iter_14.{kind}{ENDS[later]}"))


def test_binary_is_the_default_and_the_events_say_so(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, 'snapshot_prefix: "s"')
    solver.param.ClearField("snapshot_format")
    solver.step(1, batches)
    assert solver.snapshot() == tmp_path / "s_iter_1.caffemodel"
    (event,) = recorder.of("snapshot")
    assert (event.model, event.state) == tuple(f"{tmp_path}/s_iter_1.{kind}" for kind in ("caffemodel", "solverstate"))
    log = io.StringIO()
    GlogWriter(log)(event)
    assert [line.split("] ")[1] for line in log.getvalue().splitlines()] == [
        f"Snapshotting to binary proto file {event.model}",
        f"Snapshotting solver state to binary proto file {event.state}",
    ]
    assert snapshot.read_state(event.state).learned_net == "s_iter_1.caffemodel"


def test_the_model_says_where_it_comes_from_and_holds_its_net(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, BINARY + 'snapshot_prefix: "s" snapshot_diff: true')
    before = blobs_of(solver)
    solver.step(1, batches)
    model = snapshot.read_model(solver.snapshot())
    assert model.attrs["forcereg_net"] == (tmp_path / "net.prototxt").read_text()
    assert (model.attrs["forcereg_seed"], model.attrs["forcereg_input_shapes"]) == ("7", '{"x": [4, 3], "y": [4, 2]}')
    assert list(model.layers) == ["in", "ip", "loss"]
    after = blobs_of(solver)
    for index in (0, 1):
        update = (before[f"ip/{index}"] - after[f"ip/{index}"]).numpy()
        np.testing.assert_allclose(model.diffs["ip"][index], update, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(model.layers["ip"][index], after[f"ip/{index}"])
    net = load_net(model.path, model.path, phase="TRAIN")  # the file is a net as well
    for found, wanted in zip(net.params["ip"], solver.net.params["ip"], strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", ENDS, ids=["binary", "hdf5"])
def test_a_pair_that_moved_stays_a_pair(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    solver, _ = regression(tmp_path, form + 'snapshot_prefix: "s"')
    solver.step(2, batches)
    solver.snapshot()
    kept = blobs_of(solver)
    (tmp_path / "kept").mkdir()
    for path in tmp_path.glob("s_iter_2.*"):
        shutil.move(path, tmp_path / "kept")
    again, recorder = regression(tmp_path, form + 'snapshot_prefix: "s"')
    again.restore(tmp_path / f"kept/s_iter_2.solverstate{ENDS[form]}")
    assert again.last_snapshot == tmp_path / f"kept/s_iter_2.caffemodel{ENDS[form]}"
    assert not recorder.texts()
    for name, blob in blobs_of(again).items():
        assert torch.equal(blob, kept[name])


def test_shared_weights_stand_in_every_layer(tmp_path: Path) -> None:
    ip = 'type: "InnerProduct" param { name: "w" } inner_product_param { num_output: 3 }'
    net = f"""
    layer {{ name: "in" type: "Input" top: "x" top: "y" input_param {{ shape {{ dim: 4 dim: 3 }} }} }}
    layer {{ name: "a" bottom: "x" top: "a" {ip} }}
    layer {{ name: "b" bottom: "a" top: "b" {ip} }}
    layer {{ name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "y" top: "loss" }}
    """
    solver, _ = regression(tmp_path, BINARY + 'snapshot_prefix: "s"', net=net)
    with torch.no_grad():
        solver.net.params["a"][0].fill_(3)
    model = snapshot.read_model(solver.snapshot())
    assert {name: sorted(blobs) for name, blobs in model.layers.items() if blobs} == {"a": [0, 1], "b": [0, 1]}
    np.testing.assert_array_equal(model.layers["b"][0], np.full((3, 3), 3))
    assert len(snapshot.read_state(tmp_path / "s_iter_0.solverstate").history) == 3


@pytest.mark.parametrize("form", ENDS, ids=["binary", "hdf5"])
def test_the_wrong_file_is_explained(form: str, tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, form + 'snapshot_prefix: "s"')
    solver.snapshot()
    model, state = (tmp_path / f"s_iter_0.{kind}{ENDS[form]}" for kind in ("caffemodel", "solverstate"))
    with pytest.raises(ForceregError, match=r"this is a model, expected a solver state; give the \.solverstate") as one:
        solver.restore(model)
    with pytest.raises(ForceregError, match=f"solver state, expected a model; give its model, {model.name}") as two:
        solver.load_weights(state)
    assert "\n" not in f"{one.value}{two.value}"


def test_a_model_that_lacks_layers_is_told_when_resuming(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, BINARY + 'snapshot_prefix: "s"')
    path = solver.snapshot()
    snapshot.write_model(path, {}, net=snapshot.net_message(solver.net.spec))
    solver.restore(tmp_path / "s_iter_0.solverstate")
    (text,) = recorder.texts()
    assert text == f"{path}: lacks layers ip; they keep their initial weights"


def test_a_net_too_large_for_the_format_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving.snapshot.binary, "LIMIT", 4 * 8)  # 3 x 2 weights and 2 biases
    for extra, fits in (("", True), ("snapshot_diff: true", False), ('type: "Adam"', False)):
        solver, recorder = regression(tmp_path, f'{BINARY} snapshot_prefix: "s" max_iter: 1 {extra}')
        if fits:
            saving.check_format(solver.param, solver.net, len(solver.updater.history), "s")
            continue
        with pytest.raises(ForceregError, match="takes 64 bytes, a binaryproto file 32 at most; set snapshot_format"):
            solver.solve(batches)
        assert recorder.story() == ["start"]
    solver.param.snapshot_format = solver.param.HDF5
    saving.check_format(solver.param, solver.net, 2, "s")


def test_check_tells_of_a_net_too_large_for_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving.snapshot.binary, "LIMIT", 4 * 8 - 1)
    regression(tmp_path, f'{BINARY} snapshot_prefix: "s" max_iter: 1')
    errors = [str(error) for error in check_file(str(tmp_path / "solver.prototxt")).errors]
    assert [error for error in errors if "takes 32 bytes, a binaryproto file 31 at most" in error] == errors != []


@pytest.mark.parametrize(
    ("option", "kind", "says"),
    [
        ("--snapshot", "caffemodel", "s_iter_1.caffemodel: this is a model, expected a solver state; give the"),
        ("--weights", "solverstate", "s_iter_1.solverstate: this is a solver state, expected a model; give its model"),
    ],
    ids=["model-as-snapshot", "state-as-weights"],
)
def test_the_command_line_explains_the_wrong_file(
    option: str, kind: str, says: str, tmp_path: Path, run_cli: RunCli
) -> None:
    solver, _ = regression(tmp_path, f'{BINARY} snapshot_prefix: "s" max_iter: 1')
    solver.step(1, batches)
    solver.snapshot()
    done = run_cli("train", "--solver", "solver.prototxt", option, f"s_iter_1.{kind}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"forcereg: {says}") and "Traceback" not in done.stderr
