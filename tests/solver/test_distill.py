"""A teacher beside the labels: what the loss is, who may teach, and that runs are as exact as without."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError, UsageError
from forcereg.layers.loss import SoftmaxWithLoss
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.snapshot import read_model, write_model
from forcereg.solver.asked import TEACHING, check_teacher
from forcereg.solver.distill import TEACHER
from forcereg.solver.loop import Solver
from forcereg.solver.teacher import learn_from
from tests.conftest import RunCli
from tests.solver.graphs import on_device
from tests.solver.nets import IMAGES, Recorder, blobs_of, write_images, write_solver
from tests.solver.tape import Tape

RUN = 'max_iter: 6 momentum: 0.9 display: 1 snapshot: 3 snapshot_prefix: "s" average_loss: 1'
PLAIN = re.sub(r'layer \{ name: "drop".*\n', "", IMAGES)
"""Without Dropout, so that a pass may be repeated."""
TWO = PLAIN.replace(
    'layer { name: "loss"',
    'layer { name: "aux" type: "InnerProduct" bottom: "conv" top: "aux" inner_product_param { num_output: 3 '
    'weight_filler { type: "xavier" } } }\n'
    'layer { name: "aux_loss" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" top: "aux_loss" loss_weight: 0.3 }'
    '\nlayer { name: "loss"',
)


# -- the loss


def head(shape: tuple[int, ...], axis: int, extra: str) -> SoftmaxWithLoss:
    labels = [size for at, size in enumerate(shape) if at != axis]
    sizes = [" ".join(f"dim: {size}" for size in one) for one in (shape, labels)]
    net = load_net(f"""
    layer {{ name: "in" type: "Input" top: "x" top: "y"
      input_param {{ shape {{ {sizes[0]} }} shape {{ {sizes[1]} }} }} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" top: "loss" softmax_param {{ axis: {axis} }}
      loss_param {{ {extra} }} }}""")
    found = net.module("loss")
    assert isinstance(found, SoftmaxWithLoss)
    return found


@settings(max_examples=40)
@given(
    st.sampled_from([((5, 3), 1), ((2, 4, 3), 1), ((2, 3, 4), 2), ((3, 4), 0)]),
    st.sampled_from(["", "ignore_label: 1", "ignore_label: 1 normalization: FULL", "normalization: BATCH_SIZE"]),
    st.floats(0.5, 20),
    st.integers(0, 99),
)
def test_soft_loss_is_the_mean_divergence(
    form: tuple[tuple[int, ...], int], extra: str, temperature: float, seed: int
) -> None:
    """Item by item in float64, over the items and by the divisor of the loss itself."""
    shape, axis = form
    random = torch.Generator().manual_seed(seed)
    scores, goals = (3 * torch.randn(shape, generator=random) for _ in range(2))
    labels = torch.randint(0, 3, scores.select(axis, 0).shape, generator=random).float()
    layer = head(shape, axis, extra)
    rows, aims = (one.double().movedim(axis, -1).reshape(-1, shape[axis]) for one in (scores, goals))
    total, count = 0.0, 0
    for row, aim, label in zip(rows, aims, labels.flatten().tolist(), strict=True):
        if "ignore" in extra and label == 1:
            continue
        p, q = torch.softmax(aim / temperature, 0), torch.softmax(row / temperature, 0)
        total, count = total + float((p * (p / q).log()).sum()), count + 1
    by = {"FULL": labels.numel(), "BATCH_SIZE": math.prod(shape[:axis])}
    expected = temperature**2 * total / max(1, next((n for name, n in by.items() if name in extra), count))
    assert float(layer.soft(scores, labels, goals, temperature)) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert float(layer.soft(scores, labels, scores, temperature)) == 0


def taught(
    root: Path, share: float = 0.5, net: str = PLAIN, teacher: Any = None, model: Path | None = None, **options: Any
) -> tuple[Solver, Recorder]:
    """A solver over `root` whose net learns from a teacher, by default `whole`, and its recorder."""
    (root / "net.prototxt").write_text(net)
    recorder = Recorder()
    solver = Solver(write_solver(root, RUN), observers=[recorder], **options)
    learn_from(solver, teacher or root / "whole.caffemodel.h5", model, 3.0, share)
    return solver, recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With whole.caffemodel.h5, a trained net."""
    root = write_images(tmp_path_factory.mktemp("whole"))
    solver = Solver(write_solver(root, 'max_iter: 8 snapshot_prefix: "w" snapshot_after_train: true', "whole.prototxt"))
    solver.solve()
    (root / "w_iter_8.caffemodel.h5").rename(root / "whole.caffemodel.h5")
    return root


def teacher_of(root: Path) -> Net:
    shapes = {"data": (6, 1, 6, 6), "label": (6,)}
    return load_net(PLAIN, root / "whole.caffemodel.h5", input_shapes=shapes)


@pytest.mark.parametrize("net", [PLAIN, TWO], ids=["one", "two"])
def test_gradients_are_those_of_the_formula(net: str, folder: Path) -> None:
    solver, _ = taught(folder, 0.3, net)
    batch = dict(zip(("data", "label"), solver.net.feeds["data"].next(), strict=True))
    with torch.no_grad():
        goals = teacher_of(folder)(batch, blobs=["ip"])["ip"]
    own = solver.net(batch, blobs=["ip", "loss", *(["aux_loss"] if net is TWO else [])])
    aims, logs = torch.softmax(goals / 3, 1), torch.log_softmax(own["ip"] / 3, 1)
    soft = 9 * (aims * (aims.log() - logs)).sum(1).mean()
    total = 0.7 * own["loss"] + 0.3 * soft + (0.3 * own["aux_loss"] if net is TWO else 0)
    total.backward()
    expected = [weight.grad.clone() for weight in solver.updater.weights if weight.grad is not None]
    solver.updater.begin(0)
    loss, outputs = solver.passes.accumulate(lambda sub: batch)
    torch.testing.assert_close(loss, total.detach())
    torch.testing.assert_close(outputs["loss_soft"], soft.detach())
    for found, one in zip(solver.updater.weights, expected, strict=True):
        torch.testing.assert_close(found.grad, one, rtol=1e-4, atol=1e-6)


def test_what_a_teacher_does_not_know_the_labels_teach(folder: Path) -> None:
    solver, recorder = taught(folder, 0.3, TWO)
    (note,) = [event.text for event in recorder.of("note")]
    assert note.endswith("at temperature 3: aux_loss counts 0.3, loss counts 0.7, loss_soft counts 0.3; "
                         "it has no scores for aux_loss")  # fmt: skip
    assert solver.passes.loss_weights == pytest.approx({"loss": 0.7, "aux_loss": 0.3, "loss_soft": 0.3})


def test_displays_add_up(folder: Path) -> None:
    solver, recorder = taught(folder, 0.25, net=IMAGES)
    solver.solve()
    shown = recorder.of("train")
    assert [event.iteration for event in shown] == list(range(6))
    for event in shown:
        assert [one.name for one in event.outputs] == ["loss", "loss_soft"]
        assert event.loss == pytest.approx(sum(one.weight * one.value for one in event.outputs), rel=1e-5)
    assert recorder.of("final")[0].iteration == 6


def test_labels_alone_where_the_teacher_counts_nothing(folder: Path) -> None:
    """It draws no random number, moves no data and no statistic."""
    ends = []
    for share in (1e-30, None):
        (folder / "net.prototxt").write_text(IMAGES)
        solver = Solver(write_solver(folder, RUN), observers=[Recorder()])
        if share:
            learn_from(solver, folder / "whole.caffemodel.h5", None, 3.0, share)
        solver.solve()
        ends.append((blobs_of(solver), torch.get_rng_state()))
    assert_same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, blob in one.items():
        assert torch.equal(blob, other[name]), name


def test_who_teaches_himself_is_at_his_goal(folder: Path) -> None:
    solver, recorder = taught(folder, 0.5, PLAIN)
    solver.load_weights(folder / "whole.caffemodel.h5")
    solver.net.eval()  # BatchNorm as the teacher's
    solver.step(1)
    assert recorder.of("train")[0].outputs[1].value == pytest.approx(0, abs=1e-5)


# -- exactness


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_graphs_hold_the_teacher(amp: str | None, folder: Path) -> None:
    ends = []
    for tape in (None, Tape()):
        with on_device(tape):
            solver, recorder = taught(folder, 0.5, IMAGES, amp=amp)
            solver.solve()
        losses = [[one.value for one in event.outputs] for event in recorder.of("train")]
        ends.append((blobs_of(solver), losses, recorder))
    (blobs, losses, _), (others, other_losses, recorder) = ends
    assert_same(blobs, others)
    assert losses == other_losses and len(losses) == 6
    assert not [event.text for event in recorder.of("note") if "CUDA graphs are off" in event.text]


def test_resumed_is_the_same(folder: Path) -> None:
    solver, recorder = taught(folder, 0.5, IMAGES)
    solver.solve()
    files = [folder / f"s_iter_6.{kind}.h5" for kind in ("caffemodel", "solverstate")]
    whole = [path.read_bytes() for path in files]
    again, recorder = taught(folder, 0.5, IMAGES)
    again.restore(folder / "s_iter_3.solverstate.h5")
    again.solve()
    assert [path.read_bytes() for path in files] == whole and recorder.texts() == []
    told = json.loads(read_model(files[0]).attrs[TEACHER])
    assert told.keys() == {"file", "weights", "temperature", "weight"} and told["weight"] == 0.5


def test_another_teacher_is_told(folder: Path) -> None:
    solver, _ = taught(folder, 0.5, IMAGES)
    solver.solve()
    state = folder / "s_iter_3.solverstate.h5"
    other, recorder = taught(folder, 0.25, IMAGES)
    other.restore(state)
    place = re.escape(str(folder / "whole.caffemodel.h5"))
    (text,) = recorder.texts()
    assert re.search(rf"with teacher {place} \(temperature 3.0, weight 0.5\); training goes on with .*0.25", text)
    none = Recorder()
    Solver(write_solver(folder, RUN), observers=[none]).restore(state)
    assert none.texts()[0].endswith("training goes on with no teacher")


def test_a_blob_that_is_asked_for_changes_no_pass(folder: Path) -> None:
    """Of layers that run as one, too."""
    (folder / "net.prototxt").write_text(PLAIN)
    net = Solver(write_solver(folder, RUN)).net
    batch = dict(zip(("data", "label"), net.feeds["data"].next(), strict=True))
    (loss, outputs), (same, more) = net.forward_loss(batch), net.forward_loss(batch, ["ip", "label"])
    assert torch.equal(loss, same) and outputs.keys() == {"loss"} and more.keys() == {"loss", "ip", "label"}


# -- who may teach


HINGE = PLAIN.replace("SoftmaxWithLoss", "HingeLoss")
WITHOUT = PLAIN.replace('top: "loss" }', 'top: "loss" loss_weight: 0 }')
PROBABILITIES = PLAIN.replace(
    'layer { name: "loss"', 'layer { name: "p" type: "Softmax" bottom: "ip" top: "ip" }\nlayer { name: "loss"'
)


@pytest.mark.parametrize(
    ("net", "teacher", "message"),
    [
        pytest.param(HINGE, PLAIN, "has no SoftmaxWithLoss that counts", id="no-softmax"),
        pytest.param(WITHOUT, PLAIN, "has no SoftmaxWithLoss that counts", id="no-weight"),
        pytest.param(PLAIN, PLAIN.replace('"ip"', '"fc"'), "has no blob 'ip'", id="other-name"),
        pytest.param(
            PLAIN.replace("num_output: 3", "num_output: 4"),
            PLAIN,
            r"teacher.prototxt:\d+: layer 'ip'.* shape \[6, 3\], that of .*net.prototxt:\d+: layer 'ip'.* \[6, 4\]",
            id="other-classes",
        ),
        pytest.param(PLAIN, PLAIN.replace('"data"', '"x"'), "needs blob 'x', .* is fed data, label", id="input"),
        pytest.param(PLAIN, PROBABILITIES, "gives probabilities in 'ip'", id="probabilities"),
        pytest.param(PLAIN, PLAIN.replace('name: "ip"', 'name: "other"'), "lacks .*teacher's other", id="no-weights"),
    ],
)
def test_one_line_for_a_teacher_that_cannot_teach(net: str, teacher: str, message: str, folder: Path) -> None:
    (folder / "teacher.prototxt").write_text(teacher)
    with pytest.raises(ForceregError, match=message) as caught:
        taught(folder, net=net, model=folder / "teacher.prototxt")
    assert "\n" not in str(caught.value)


def test_errors_name_the_teacher_s_own_options(folder: Path) -> None:
    solver = Solver(write_solver(folder))
    write_model(folder / "caffes.caffemodel", {"ip": {0: np.zeros((3, 4), np.float32)}})
    with pytest.raises(ForceregError, match=r"holds no net text .*; give it by --teacher-model net.prototxt"):
        learn_from(solver, folder / "caffes.caffemodel")
    with pytest.raises(UsageError, match="teacher is 5; expected the path of"):
        learn_from(solver, 5)


RECURRENT = """
layer { name: "in" type: "Input" top: "x" top: "cont" top: "label" input_param {
  shape { dim: 2 dim: 1 dim: 4 } shape { dim: 2 dim: 1 } shape { dim: 2 dim: 1 } } }
layer { name: "rnn" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "h" bottom: "label" top: "loss" softmax_param { axis: 2 } }
"""


def test_a_teacher_with_a_memory(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(RECURRENT)
    solver = Solver(write_solver(tmp_path))
    with pytest.raises(ForceregError, match=r"layer 'rnn'.* carries a state from batch to batch"):
        learn_from(solver, solver)


def test_a_net_in_memory_and_a_split(folder: Path) -> None:
    """An Accuracy in training, too, puts a Split in front of the loss."""
    both = PLAIN.replace('top: "accuracy" include { phase: TEST }', 'top: "accuracy"')
    solver, recorder = taught(folder, net=both, teacher=teacher_of(folder))
    solver.step(1)
    assert [one.name for one in recorder.of("train")[0].outputs] == ["accuracy", "loss", "loss_soft"]


# -- by the command


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e-4, 1e30, "4", None])
def test_temperatures_that_are_none(value: Any) -> None:
    """At 1e30 the soft loss was no number."""
    with pytest.raises(UsageError, match=r"temperature is .*; expected a number from 0.001 to 100, as in 4"):
        check_teacher({**TEACHING, "teacher": "t", "temperature": value})


@pytest.mark.parametrize("name", ["teacher_model", "temperature", "teacher_weight"])
def test_what_is_said_of_no_teacher(name: str) -> None:
    check_teacher(TEACHING)
    with pytest.raises(UsageError, match=f"{name} is of teacher, which isn't given; add it"):
        check_teacher({**TEACHING, name: 0.25})


def test_commands(folder: Path, run_cli: RunCli) -> None:
    (folder / "net.prototxt").write_text(IMAGES)
    write_solver(folder, RUN)
    base = ("--solver", "solver.prototxt", "--max-iter", "2")
    done = run_cli("train", *base, "--nproc", "2", "--teacher", "whole.caffemodel.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    soft = re.findall(r"Train net output #1: loss_soft = \S+ \(\* 0.5 = \S+ loss\)", done.stderr)
    assert len(soft) == 2 and "Taught by whole.caffemodel.h5 at temperature 4" in done.stderr
    options = ("--teacher", "whole.caffemodel.h5", "--temperature", "2", "--teacher-weight", "0.9")
    start = ("--model", "net.prototxt", "--weights", "whole.caffemodel.h5")
    done = run_cli("finetune", *start, *base, *options, cwd=folder)
    assert done.returncode == 0 and "loss counts 0.1, loss_soft counts 0.9" in done.stderr, done.stderr
    for wrong, message in (
        (("--teacher-model", "net.prototxt"), "--teacher-model is of --teacher, which isn't given"),
        (("--teacher-weight", "0.3"), "--teacher-weight is of --teacher, which isn't given; add it"),
    ):
        done = run_cli("train", *base, *wrong, cwd=folder)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
