"""Scores on a solver's test net, kept by content; fine-tuning that goes on and isn't done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg.data.decoded as decoded
from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.lowrank.decompose import LowrankNet, Prepared, Selection, prepare
from forcereg.lowrank.ranks import Whole
from forcereg.schema.text import SolverFile, parse_net, read_solver
from forcereg.solver.loop import Solver
from forcereg.study.evaluate import Evaluator
from forcereg.study.scores import Cache, Evaluation, origin
from tests.solver.nets import IMAGES, write_images, write_solver

SCHEDULE = 'max_iter: 15 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 15'
BODY = IMAGES[IMAGES.index('layer {\n  name: "conv"') :]
PARTS = IMAGES.split("\nlayer {\n  name: ")  # the name, the two data layers, the others


class Trained:
    """A folder with a trained net."""

    def __init__(self, root: Path, schedule: str = SCHEDULE, **more: str) -> None:
        self.root = write_images(root)
        self.solver = read_solver(write_solver(root, schedule, **more))
        trained = Solver(self.solver)
        trained.solve()
        self.score = trained.test(0)
        self.model = snapshot.read_model(root / "net_iter_15.caffemodel.h5")
        self.file = parse_net(self.model.attrs["forcereg_net"], "net.prototxt")

    def prepared(self, **selection: Any) -> Prepared:
        return prepare(self.file, self.model.layers, None, Selection(**selection))

    def cut(self, rank: int = 2) -> LowrankNet:
        return self.prepared().apply({"conv": rank})


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(tmp_path)


def test_scores_are_the_solvers(trained: Trained) -> None:
    found = Evaluator(trained.solver).score(trained.file, trained.model.layers)
    assert found == Evaluation(trained.score.mean("accuracy"), trained.score.loss)


def test_scores_are_kept_by_content(trained: Trained, tmp_path: Path) -> None:
    cache = tmp_path / "scores.json"
    first, cut = Evaluator(trained.solver, cache=cache), trained.cut()
    scores = [first.score(cut.net, cut.weights), first.score(trained.file, trained.model.layers)]
    assert first.runs == 2 and len(json.loads(cache.read_text())) == 2

    again = Evaluator(trained.solver, cache=cache)
    assert [again.score(cut.net, cut.weights), again.score(trained.file, trained.model.layers)] == scores
    assert again.runs == 0
    # another rank, test_iter or test set is another net
    other = trained.cut(1)
    again.score(other.net, other.weights)
    assert again.runs == 1
    trained.solver.message.test_iter[0] = 1
    shorter = Evaluator(trained.solver, cache=cache)
    shorter.score(cut.net, cut.weights)
    os.utime(tmp_path / "test_lmdb" / "data.mdb", ns=(1, 1))
    shorter.score(cut.net, cut.weights)
    assert shorter.runs == 2


def test_a_damaged_cache_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"a": ')
    cache = Cache(tmp_path / "scores.json")
    assert cache.get("a") is None
    cache.put("a", Evaluation(0.5, 1.0))
    assert Cache(tmp_path / "scores.json").get("a") == Evaluation(0.5, 1.0)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    one, two = Cache(tmp_path / "scores.json"), Cache(tmp_path / "scores.json")
    one.put("a", Evaluation(0.5, 1.0))
    two.put("b", Evaluation(None, 2.0))
    both = Cache(tmp_path / "scores.json")
    assert (both.get("a"), both.get("b")) == (Evaluation(0.5, 1.0), Evaluation(None, 2.0))


def test_the_test_set_is_decoded_once(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = decoded.DecodedSet

    def counted(*args: Any) -> decoded.DecodedSet:
        made.append(args)
        return real(*args)

    monkeypatch.setattr(decoded, "DecodedSet", counted)
    evaluator = Evaluator(trained.solver)
    for rank in (1, 2, 3):
        cut = trained.cut(rank)
        evaluator.score(cut.net, cut.weights)
    assert evaluator.runs == 3 and len(made) == 1


@pytest.mark.parametrize(
    ("net", "lacking", "message"),
    [
        pytest.param(
            'input: "data" input: "label" input_shape { dim: 5 dim: 1 dim: 6 dim: 6 } input_shape { dim: 5 } ' + BODY,
            "",
            r"net.prototxt: its test phase reads no data \(input data, label; a deploy net\?\)",
            id="deploy",
        ),
        pytest.param(IMAGES, "ip", "net.prototxt: the weights lack layers ip", id="weights"),
    ],
)
def test_nets_that_have_no_score(trained: Trained, net: str, lacking: str, message: str) -> None:
    weights = {name: blobs for name, blobs in trained.model.layers.items() if name != lacking}
    with pytest.raises(ForceregError, match=message):
        Evaluator(trained.solver).score(parse_net(net, "net.prototxt"), weights)


def test_a_solver_without_a_test(tmp_path: Path) -> None:
    solver = read_solver(write_solver(write_images(tmp_path), "max_iter: 1"))
    with pytest.raises(ForceregError, match="has no test net to score with; set test_iter and test_interval"):
        Evaluator(solver)


def test_accuracy_of_choices(trained: Trained) -> None:
    evaluator, prepared = Evaluator(trained.solver), trained.prepared()
    accuracy = evaluator.accuracy(prepared, trained.model.layers)
    assert accuracy({"conv": Whole("")}) == accuracy({}) == trained.score.mean("accuracy")
    cut = prepared.apply({"conv": 1})
    assert accuracy({"conv": 1}) == evaluator.score(cut.net, cut.weights).accuracy
    assert evaluator.runs == 3  # the last one by its content, which doesn't tell how it was made


def test_choices_are_known_again_whatever_the_last_bits_are(trained: Trained, tmp_path: Path) -> None:
    """As another number of threads leaves them."""
    cache, prepared = tmp_path / "scores.json", trained.prepared()
    Evaluator(trained.solver, cache=cache).accuracy(prepared, trained.model.layers)({"conv": 2})
    others = trained.prepared()
    for one in others.candidates:
        for method in one.ladder._methods:
            method._axes[0].mul_(1 + 1e-7)
    again = Evaluator(trained.solver, cache=cache)
    accuracy = again.accuracy(others, trained.model.layers)
    accuracy({"conv": 2})
    assert again.runs == 0
    accuracy({"conv": 3})
    assert again.runs == 1


def test_origins() -> None:
    """Weights, method, rank and metric: each of them makes another net."""
    layer = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" '
    text = 'input: "x" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 } ' + layer
    text += "convolution_param { num_output: 5 kernel_size: 2 } }"
    random = np.random.default_rng(1)
    weights, others = ({"c": {0: random.normal(size=(5, 2, 2, 2)).astype(np.float32)}} for _ in range(2))
    metric = torch.diag(torch.arange(1.0, 9.0)).double()[None]

    def made(of: Any, rank: Any, **selection: Any) -> str:
        return origin(prepare(parse_net(text), of, None, Selection(**selection)), {"c": rank})

    found = [
        made(weights, Whole("")),
        made(weights, 2),
        made(weights, 3),
        made(others, 2),
        made(weights, 2, method="svd"),
        made(weights, 2, moments={"c": metric}),
    ]
    assert len(set(found)) == len(found)
    assert made(weights, 2) == found[1] and made(weights, Whole("another reason")) == found[0]


def test_a_net_without_an_accuracy(trained: Trained) -> None:
    file = parse_net(IMAGES[: IMAGES.index('layer { name: "accuracy"')], "net.prototxt")
    prepared = prepare(file, trained.model.layers, None, Selection())
    accuracy = Evaluator(trained.solver).accuracy(prepared, trained.model.layers)
    with pytest.raises(ForceregError, match=r"net\.prototxt: has no Accuracy layer in its test phase"):
        accuracy({})


@pytest.fixture
def apart(tmp_path: Path) -> Trained:
    """A trained net whose test net is a file of its own."""
    head, train, test, *rest = PARTS
    for name, own in (("train", train), ("test", test)):
        (tmp_path / f"{name}.prototxt").write_text("\nlayer {\n  name: ".join((head, own, *rest)))
    return Trained(tmp_path, net='train_net: "train.prototxt" test_net: "test.prototxt"')


@pytest.mark.parametrize("fold_bn", [False, True], ids=["", "folded"])
def test_a_test_net_of_its_own(apart: Trained, fold_bn: bool) -> None:
    """Is decomposed as the trained net is."""
    evaluator, prepared = Evaluator(apart.solver), apart.prepared(fold_bn=fold_bn)
    accuracy = evaluator.accuracy(prepared, apart.model.layers)
    assert accuracy({}) == apart.score.mean("accuracy")
    full = prepared.apply({"conv": 4})
    test = evaluator.tested(prepared, apart.model.layers).apply({"conv": 4})
    assert [layer.name for layer in test.net.layer][1:] == [layer.name for layer in full.net.layer][1:]
    assert accuracy({"conv": 4}) == apart.score.mean("accuracy")
    score, _ = evaluator.finetune(full.net, full.weights, 2, apart.root / "tuned", test.net)
    assert score.accuracy is not None


def test_a_test_net_that_lacks_a_layer(apart: Trained) -> None:
    text = (apart.root / "test.prototxt").read_text()
    (apart.root / "test.prototxt").write_text(text.replace('name: "conv"', 'name: "other"'))
    with pytest.raises(ForceregError, match="the test net lacks layer 'conv' of the net that is decomposed"):
        Evaluator(apart.solver).accuracy(apart.prepared(), apart.model.layers)


def test_finetuning(trained: Trained, tmp_path: Path) -> None:
    evaluator, cut = Evaluator(trained.solver), trained.cut()
    score, weights = evaluator.finetune(cut.net, cut.weights, 4, tmp_path / "tuned")
    assert score == evaluator.score(cut.net, weights)
    assert (weights["conv_lowrank"][0] != cut.weights["conv_lowrank"][0]).any()
    (model,) = (tmp_path / "tuned").glob("*.caffemodel.h5")
    solver = read_from(snapshot.read_model(model).attrs["forcereg_solver"], tmp_path)
    assert (solver.base_lr, solver.lr_policy, solver.force_decay, solver.max_iter) == (
        pytest.approx(0.01),
        "fixed",
        0,
        4,
    )

    before = model.stat().st_mtime_ns
    assert evaluator.finetune(cut.net, cut.weights, 4, tmp_path / "tuned")[0] == score
    assert model.stat().st_mtime_ns == before  # it was done
    other = trained.cut(3)
    evaluator.finetune(other.net, other.weights, 4, tmp_path / "tuned")
    assert len(list((tmp_path / "tuned").glob("*.caffemodel.h5"))) == 2


def read_from(text: str, root: Path) -> Any:
    (root / "found.prototxt").write_text(text)
    return read_solver(root / "found.prototxt").message


def test_finetuning_that_was_interrupted_goes_on(trained: Trained, tmp_path: Path) -> None:
    cut = trained.cut()
    trained.solver.message.snapshot = 2
    straight, _ = Evaluator(trained.solver).finetune(cut.net, cut.weights, 4, tmp_path / "straight")

    def stop(solver: Solver) -> None:
        real = solver.emit

        def emit(kind: str, **more: Any) -> None:
            real(kind, **more)
            solver.stop_requested = solver.stop_requested or (kind == "progress" and solver.iter == 2)

        solver.emit = emit  # type: ignore[method-assign]

    import forcereg.study.tuning as tuning

    train = tuning.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuning, "train", lambda solver: (stop(solver), train(solver)))
        Evaluator(trained.solver).finetune(cut.net, cut.weights, 4, tmp_path / "halves")
    (half,) = (tmp_path / "halves").glob("*.caffemodel.h5")
    assert half.name.endswith("_iter_2.caffemodel.h5")
    assert Evaluator(trained.solver).finetune(cut.net, cut.weights, 4, tmp_path / "halves")[0] == straight


def test_warnings_are_told_once(trained: Trained, tmp_path: Path) -> None:
    told: list[str] = []
    message = trained.solver.message
    message.ClearField("solver_mode")
    solver = SolverFile(message, trained.solver.name, trained.solver.text, tmp_path)
    evaluator = Evaluator(solver, device="cuda", tell=told.append)
    if evaluator.device.type == "cuda":
        pytest.skip("needs a machine without a GPU")
    cut = trained.cut()
    evaluator.finetune(cut.net, cut.weights, 1, tmp_path / "tuned")
    assert len(told) == 1 and "no CUDA device is available" in told[0]
