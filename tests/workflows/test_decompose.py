"""forcereg.decompose and its like from Python: what the commands do, by keywords, told to an observer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.engine import LayerWeight, candidate, factored
from forcereg.lowrank.rule import Rule
from forcereg.registry import Option, rank_rule
from forcereg.snapshot import read_model
from forcereg.system.events import Event
from tests.commands.conftest import Cli

SNAPSHOT = "snap_iter_7.caffemodel.h5"


LAZY = "ranks.json"
"""Stands for a RankConfig, which is read at once."""
CASES = [
    pytest.param({"rule": forcereg.MaxError(0.4)}, "--error 0.4", id="error"),
    pytest.param({"rule": forcereg.MinEnergy(0.6)}, "--energy 0.6", id="energy"),
    pytest.param({"rule": forcereg.ForkSvdRatio(0.8), "method": "svd"}, "--fork-svd-ratio 0.8 --method svd", id="fork"),
    pytest.param({"rule": forcereg.Ranks([3, 4])}, "--ranks 3,4", id="ranks"),
    pytest.param(
        {"rule": forcereg.Ranks([[4, 2], [4, 2]]), "method": "tucker2"}, "--ranks 4-2,4-2 --method tucker2", id="pairs"
    ),
    pytest.param({"rule": LAZY}, "--rank-config ranks.json", id="config"),
    pytest.param(
        {"rule": LAZY, "method": "mixed"},
        "--rank-config ranks.json --method mixed",
        id="mixed",
    ),
    pytest.param({"rule": forcereg.MaxMacs(0.8)}, "--max-macs 0.8", id="macs"),
    pytest.param({"rule": forcereg.MaxMacs(0.7, "minmax")}, "--max-macs 0.7 --choose minmax", id="minmax"),
    pytest.param({"rule": forcereg.MaxParams(0.8), "fc": True}, "--max-params 0.8 --fc", id="params"),
    pytest.param(
        {"rule": forcereg.MaxError(0.01), "even_if_dearer": True, "layers": ["conv1"]},
        "--error 0.01 --even-if-dearer --only-layers conv1",
        id="dearer",
    ),
    pytest.param(
        {"rule": forcereg.MaxError(0.5), "except_layers": "conv2", "multiple": 4},
        "--error 0.5 --except-layers conv2 --multiple 4",
        id="except",
    ),
    pytest.param(
        {"rule": forcereg.Ranks([2]), "layers": "conv2", "input_shapes": {"data": [1, 3, 20, 20]}},
        "--ranks 2 --only-layers conv2 --input-shape data=1,3,20,20",
        id="shapes",
    ),
]


@pytest.mark.parametrize(("keywords", "options"), CASES)
def test_the_same_as_the_command(keywords: dict[str, Any], options: str, folder: Path, cli: Cli) -> None:
    """Report and files, without printing."""
    (folder / LAZY).write_text('{"conv1": {"method": "vh", "error": 0.4}, "conv2": {"method": "pca", "rank": 4}}')
    code, out, err = cli("decompose", "--snapshot", SNAPSHOT, *options.split(), "--out", "command", "--json")
    assert code == 0, err
    if keywords["rule"] is LAZY:
        keywords = {**keywords, "rule": forcereg.RankConfig(Path(LAZY))}
    made = forcereg.decompose(Path(SNAPSHOT), **keywords)
    written = made.write("call")
    assert written == {"model": "call.prototxt", "weights": "call.caffemodel.h5"}
    expected = {**json.loads(out), **written}
    assert json.loads(json.dumps({**made.report, **written})) == expected
    assert Path("call.prototxt").read_text() == Path("command.prototxt").read_text()
    ours, theirs = read_model("call.caffemodel.h5"), read_model("command.caffemodel.h5")
    assert ours.attrs == theirs.attrs
    for name, blobs in theirs.layers.items():
        assert all(np.array_equal(values, ours.layers[name][at]) for at, values in blobs.items())


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        pytest.param(["conv1", "ip"], ["conv1", "ip"], id="names"),
        pytest.param("conv*", ["conv1", "conv2"], id="pattern"),
        pytest.param(["conv[2-9]", "i?"], ["conv2", "ip"], id="patterns"),
        pytest.param(lambda one: one.groups > 1, ["conv2"], id="by-groups"),
        pytest.param(lambda one: one.weight.shape[0] < 8, ["conv2", "ip"], id="by-shape"),
        pytest.param(lambda one: one.type == "InnerProduct", ["ip"], id="by-type"),
    ],
)
def test_layers_by_name_pattern_or_function(layers: Any, names: list[str], folder: Path) -> None:
    made = forcereg.decompose(SNAPSHOT, rule=forcereg.MaxError(0.9), layers=layers)
    assert [layer["name"] for layer in made.report["layers"]] == names


def test_a_pattern_of_no_layer_is_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no Convolution or InnerProduct layer 'deep\*'; it has conv1, conv2, ip"):
        forcereg.decompose(SNAPSHOT, rule=forcereg.MaxError(0.9), layers=["deep*"])


def test_a_function_narrows_what_a_config_names(folder: Path) -> None:
    rule = forcereg.RankConfig({"conv1": 2, "conv2": 2})
    made = forcereg.decompose(SNAPSHOT, rule=rule, layers=lambda one: one.groups == 1)
    assert [layer["name"] for layer in made.report["layers"]] == ["conv1"]


def test_an_observer_hears_and_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Event] = []
    made = forcereg.decompose(SNAPSHOT, rule=forcereg.MaxError(0.4), observer=seen.append)
    (folder / "low.caffemodel").write_bytes(b"")
    made.write("low")
    forcereg.ranks(SNAPSHOT, observer=seen.append)
    steps = [(event.task, event.done, event.most) for event in seen if event.kind == "progress"]
    assert steps[:2] == [("step", 0, 4), ("step", 1, 4)] and steps[-1] == ("layer", 2, 2)
    texts = [event.text for event in seen if event.kind == "progress"]
    assert "conv1: errors of its ranks" in texts and any(text.startswith("conv2: rank ") for text in texts)
    assert [event.text for event in seen if event.kind == "warning"] == [
        "low.caffemodel is an earlier run's: the net beside it is now that of low.caffemodel.h5"
    ]
    assert capfd.readouterr() == ("", "")


def test_without_an_observer_warnings_are_python_s(folder: Path) -> None:
    made = forcereg.decompose(SNAPSHOT, rule=forcereg.Ranks([2, 2]))
    (folder / "low.caffemodel").write_bytes(b"")
    with pytest.warns(UserWarning, match="low.caffemodel is an earlier run's"):
        made.write("low")


def test_other_formats_and_files_that_were_read(folder: Path) -> None:
    made = forcereg.decompose(SNAPSHOT, rule=forcereg.Ranks([2, 2]))
    assert made.write(folder / "low", "binary")["weights"] == str(folder / "low.caffemodel")
    assert read_model(folder / "low.caffemodel").layers["conv1_lowrank"][0].shape == (2, 3, 3, 3)
    with pytest.raises(UsageError, match="would overwrite"):
        made.write("snap_iter_7")
    with pytest.raises(UsageError, match="the format is 'npz'; expected binary or hdf5"):
        made.write("low", "npz")


def test_the_net_and_weights_are_those_of_each_other(folder: Path) -> None:
    made = forcereg.decompose(SNAPSHOT, rule=forcereg.Ranks([8, 6]))
    params = forcereg.load_net(made.net).params
    shapes = {name: [tuple(blob.shape) for blob in blobs] for name, blobs in params.items()}
    assert {name: [blobs[at].shape for at in sorted(blobs)] for name, blobs in made.weights.items()} == shapes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: forcereg.MaxError(2), "the error bound is 2; expected 0 to 1", id="error"),
        pytest.param(lambda: forcereg.MinEnergy(-1), "the share of energy to keep is -1; expected 0 to 1", id="energy"),
        pytest.param(lambda: forcereg.ForkSvdRatio(1.5), "the ratio is 1.5; expected 0 to 1", id="ratio"),
        pytest.param(lambda: forcereg.MaxMacs(0), "the share of MACs to keep is 0; expected above 0", id="macs"),
        pytest.param(
            lambda: forcereg.MaxMacs(0.5, "minimax"), "unknown way to spread a budget 'minimax'; did", id="way"
        ),
        pytest.param(lambda: forcereg.MaxMacs(0.5, None), "choose is None; expected one of energy, minmax", id="none"),
        pytest.param(lambda: forcereg.MaxParams(2), "the share of learned values to keep is 2", id="params"),
        pytest.param(lambda: forcereg.MaxAccuracyDrop(2), "the accuracy to lose is 2; expected 0 to 1", id="drop"),
        pytest.param(
            lambda: forcereg.MaxAccuracyDrop(0.1, "s.prototxt", float), "solver and score are both given", id="both"
        ),
        pytest.param(lambda: forcereg.RankConfig({"conv1": 0}), "layer 'conv1': rank is 0; expected", id="config"),
        pytest.param(lambda: forcereg.RankConfig("none.json"), "none.json: No such file", id="file"),
    ],
)
def test_a_rule_that_can_t_be(make: Any, message: str) -> None:
    with pytest.raises(ForceregError, match=message):
        make()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        pytest.param({"rule": forcereg.ForkSvdRatio(0.9)}, "the fork's rule for --method svd, not for pca", id="fork"),
        pytest.param({"rule": forcereg.MaxAccuracyDrop(0.1)}, "needs --solver FILE", id="accuracy"),
        pytest.param({"rule": forcereg.Ranks([1]), "batch": 2}, "--batch is what --latency cpu or cuda", id="batch"),
        pytest.param({"rule": forcereg.Ranks([1]), "recalibrate": 2}, "--recalibrate needs --solver", id="solver"),
        pytest.param({"rule": forcereg.Ranks([1])}, "1 ranks given; the net has 2 layers", id="count"),
        pytest.param({"rule": forcereg.MaxError(0), "layers": lambda one: False}, "nothing to decompose", id="nothing"),
    ],
)
def test_what_doesn_t_go_together(keywords: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ForceregError, match=message):
        forcereg.decompose(SNAPSHOT, **keywords)


def test_equal_rules_are_equal() -> None:
    assert forcereg.Ranks([3, [4, 2]]) == forcereg.Ranks((3, (4, 2))) != forcereg.Ranks([3])
    assert len({forcereg.MaxError(0.1), forcereg.MaxError(0.1), forcereg.MinEnergy(0.1)}) == 2


def test_rules_are_the_options(cli: Cli) -> None:
    """In the order in which they were registered, each by its flag."""
    _, out, _ = cli("decompose", "--help")
    flags = [option.flag for option in rank_rule.options.values()]
    assert sorted(flags, key=out.index) == flags and len(flags) == 8


# -- by accuracy


def test_a_drop_on_a_solver_s_data(trained: Path, cli: Cli) -> None:
    args = ("--max-accuracy-drop", "0.3", "--solver", "solver.prototxt", "--fc", "--out", "low", "--json")
    printed = json.loads(cli("decompose", "--snapshot", "net_iter_30.caffemodel.h5", *args)[1])
    tasks = set[str]()
    rule = forcereg.MaxAccuracyDrop(0.3, solver="solver.prototxt")
    made = forcereg.decompose(
        "net_iter_30.caffemodel.h5", rule=rule, fc=True, scores="s.json", observer=lambda event: tasks.add(event.task)
    )
    assert json.loads(json.dumps(made.report["layers"])) == printed["layers"] and tasks == {"net", "step"}
    assert os.path.getsize("s.json") == os.path.getsize("low.scores.json")


def test_a_drop_by_a_function_of_the_net(trained: Path) -> None:
    """It gets nets that can be fed by hand; what it says decides."""
    nets = []

    def score(net: forcereg.Net) -> float:
        nets.append({name: tuple(blobs[0].shape) for name, blobs in net.params.items() if blobs})
        shape = net.shapes["data"]
        with torch.no_grad():
            assert net(data=torch.zeros(shape), label=torch.zeros(shape[0]))
        return 1.0 if "conv" in nets[-1] else 0.5

    made = forcereg.decompose(
        "net_iter_30.caffemodel.h5", rule=forcereg.MaxAccuracyDrop(0.1, score=score), fc=True, layers=["conv", "ip"]
    )
    assert [layer["name"] for layer in made.report["layers"]] == ["ip"] and len(nets) > 1


# -- the engine, without a net


def test_the_engine_takes_weights_alone() -> None:
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    one = candidate(LayerWeight("conv", "Convolution", "here: layer 'conv'", weight), "vh")
    made = factored([one], {"conv": 4})
    assert [tuple(part.weight.shape) for part in made.factors["conv"].parts] == [(4, 6, 3, 1), (8, 4, 1, 3)]
    assert made.layers[0].error == pytest.approx(one.error(4)) and made.layers[0].macs_before is None
    assert factored([one], {}).skipped == {"conv": "no rank was given for it"}


def test_a_rule_of_one_s_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class, registered; it needs nothing else."""
    for table in ("_known", "_about"):
        monkeypatch.setattr(rank_rule, table, dict(getattr(rank_rule, table)))

    @rank_rule("Half", option=Option("--half", "", "Half of each rank."))
    class Half(Rule):
        dearer = True

        def criterion(self, subject: Any) -> Any:
            return lambda candidates: {one.name: one.ladder.full_rank // 2 for one in candidates}

    made = forcereg.decompose(SNAPSHOT, rule=Half())
    assert [layer["rank"] for layer in made.report["layers"]] == [4, 2] and list(rank_rule.options)[-1] == "Half"
