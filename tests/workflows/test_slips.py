"""What Python users get wrong: one line from the call, not a traceback from inside; and nets left in memory."""

from __future__ import annotations

import inspect
import operator
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.snapshot import read_model
from forcereg.system.arguments import KINDS, checked
from forcereg.system.events import Event
from tests.workflows.test_decompose import SNAPSHOT

RULE = forcereg.Ranks([3, 4])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"snapshot": None}, "snapshot is None; expected the path of a .caffemodel"),
        ({"snapshot": SNAPSHOT.encode()}, "snapshot is b'snap_iter_7.caffemodel.h5'; expected the path"),
        ({"rule": 0.05}, r"rule is 0.05; expected a rule for ranks, as forcereg.MaxError\(0.05\)"),
        ({"rule": forcereg.MaxError}, "rule is <class .*MaxError'>; expected a rule"),
        ({"method": ["pca"]}, r"method is \['pca'\]; expected text"),
        ({"layers": 3}, r"layers is 3; expected names, patterns \(conv\*\) or a function of a layer"),
        ({"layers": [3]}, "layers is 3; expected text"),
        ({"layers": []}, "layers is empty; leave it out for all layers"),
        ({"layers": lambda layer: False}, "the function that picks layers takes none of conv1, conv2"),
        ({"except_layers": None}, "except_layers is None; expected a name, or several in a list"),
        ({"model": 3}, "model is 3; expected a path"),
        ({"multiple": 0}, "multiple is 0; expected 1 or more"),
        ({"multiple": "2"}, "multiple is '2'; expected a whole number"),
        ({"data_aware": True}, "data_aware is True; expected a whole number"),
        ({"workers": -1}, "workers is -1; expected 0 or more"),
        ({"input_shapes": "data=1"}, "input_shapes is 'data=1'; expected shapes by blob"),
        ({"input_shapes": {"data": 5}}, "the shape of 'data' in input_shapes is 5; expected whole numbers"),
        ({"input_shapes": {"data": [1.5]}}, "the shape of 'data' in input_shapes is 1.5; expected a whole number"),
        ({"observer": 3}, "observer is 3; expected a function of an Event"),
        ({"data": np.zeros((40, 40))}, "data is a ndarray; expected a path"),
        ({"fc": "no"}, "fc is 'no'; expected True or False"),
        ({"fold_bn": 2}, "fold_bn is 2; expected True or False"),
        ({"latency": 3}, "latency is 3; expected a device, as in cpu or cuda:0"),
    ],
)
def test_arguments_of_the_wrong_kind(keywords: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        forcereg.decompose(**{"snapshot": SNAPSHOT, "rule": RULE, **keywords})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: forcereg.MaxError("0.05"), "the error bound is '0.05'; expected a number, 0 to 1"),
        (lambda: forcereg.MaxMacs(None), "the share of MACs to keep is None; expected a number above 0"),
        (lambda: forcereg.Ranks("4,6"), "the ranks have '4,6'; expected whole numbers"),
        (lambda: forcereg.Ranks([4.5]), "the ranks have 4.5; expected whole numbers"),
        (lambda: forcereg.RankConfig([("conv1", 3)]), "expected a path, or ranks by layer"),
        (lambda: forcereg.MaxAccuracyDrop(0.1, score=3), "score is 3; expected a function of a net"),
        (lambda: forcereg.MaxAccuracyDrop(0.1, solver=print), "expected a solver prototxt's path"),
        (lambda: forcereg.train(3), "solver is 3; expected the path of a prototxt, its text or a SolverParameter"),
        (lambda: forcereg.train("base_lr: 0.1\n", set=3), "set has 3; expected"),
        (lambda: forcereg.train("s", rank_clipping="x"), "rank_clipping is 'x'; expected a number"),
        (lambda: forcereg.train("s", keep=0), "keep is 0; expected 1 or more"),
        (lambda: forcereg.train("s", weights=b"w"), "weights is b'w'; expected a path, or several in a list"),
        (lambda: forcereg.train("s", device=3), "device is 3; expected a name, or several in a list"),
        (lambda: forcereg.score("n", "w", iterations=0), "iterations is 0; expected 1 or more"),
        (lambda: forcereg.ranks("s", error=0.1), r"error is 0.1; expected numbers, as in \[0.01, 0.05\]"),
        (lambda: forcereg.ranks("s", error=[]), "error is empty; expected numbers"),
        (lambda: forcereg.frontier([], solver="s"), "snapshots is empty"),
        (lambda: forcereg.frontier("s", solver="s", rule={"a": 3}, latency="no"), "rule is 3; expected a rule"),
        (lambda: forcereg.sweep("s", set={"base_lr": [0.1]}, rule=0.5), "rule is 0.5; expected a rule"),
        (lambda: forcereg.sweep("s", set={"base_lr": 0.1}), "set has 0.1 for base_lr; expected the values to try"),
        (lambda: forcereg.sweep("s", set={"base_lr": "0.1"}), "set has '0.1' for base_lr; expected the values"),
        (lambda: forcereg.confusion("n", "w", labels=[1, 2]), "labels is 1; expected text"),
        (lambda: forcereg.plot([], "x.svg"), "logs is empty; give one or several"),
        (lambda: forcereg.new("resnet", n=0), "n is 0; expected 1 to 200"),
        (lambda: forcereg.convert_imageset("l", "o", resize_height=0, resize_width=8), "resize_height is 0; expected"),
        (lambda: forcereg.convert_imageset("l", "o", encode_type="gif"), "encode_type is 'gif'; expected jpg or png"),
        (
            lambda: forcereg.load_net("n", device="gpu"),
            "device is 'gpu'; expected a device of torch, as in cpu or cuda:0",
        ),
        (lambda: forcereg.load_net("n", phase=1.5), "phase is 1.5; expected a whole number"),
        (lambda: forcereg.nn.macs(torch.nn.ReLU, 3), "expected a torch.nn.Module"),
        (lambda: forcereg.Solver(3), "solver is 3; expected the path of a prototxt"),
    ],
)
def test_slips_of_other_calls(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_name_of_no_output(trained: Path) -> None:
    scores = forcereg.score("net.prototxt", next(trained.glob("*.caffemodel.h5")), iterations=1, observer=print)
    with pytest.raises(ForceregError, match="no output 'los'; did you mean \"loss\"\\?"):
        scores.mean("los")


def test_a_score_that_is_none(folder: Path) -> None:
    with pytest.raises(UsageError, match="score gave None; expected the net's accuracy"):
        forcereg.decompose(SNAPSHOT, rule=forcereg.MaxAccuracyDrop(0.1, score=lambda net: None))  # type: ignore[arg-type,return-value]


def test_numbers_of_numpy(folder: Path) -> None:
    rule = forcereg.Ranks(np.array([3, 4]))  # type: ignore[arg-type]
    shapes = {"data": np.array([1, 3, 20, 20])}
    made = forcereg.decompose(SNAPSHOT, rule=rule, multiple=np.int64(1), input_shapes=shapes)  # type: ignore[arg-type]
    assert rule == RULE
    made.write("numpy")
    config = forcereg.RankConfig({"conv1": np.int64(3)})
    assert config == forcereg.RankConfig({"conv1": 3})
    forcereg.decompose(SNAPSHOT, rule=config).write("config")
    assert type(forcereg.ranks(SNAPSHOT, error=np.float32([0.5])).report["errors"][0]) is float  # type: ignore[arg-type]


def test_a_config_is_its_own() -> None:
    """Whatever becomes of the mapping; and it can be a key."""
    given = {"conv1": {"rank": 8}}
    rule = forcereg.RankConfig(given)
    given["conv1"]["rank"] = 3
    assert rule == forcereg.RankConfig({"conv1": {"rank": 8}})
    assert {rule: 1}[forcereg.RankConfig({"conv1": {"rank": 8}})] == 1


# -- nets in memory


def same_weights(one: Any, other: Any) -> bool:
    """Of layers that have any: those without differ between the phases."""
    flat, others = ({(name, at): blobs[at] for name, blobs in of.items() for at in blobs} for of in (one, other))
    return {*flat} == {*others} and all(np.array_equal(values, others[key]) for key, values in flat.items())


def test_nets_in_memory(trained: Path) -> None:
    """A Solver, its net, one that was loaded and a model that was read: as by the snapshot."""
    solver = forcereg.Solver("solver.prototxt")
    solver.load_weights(found := next(trained.glob("*.caffemodel.h5")))
    rule = forcereg.MaxError(0.5)
    expected = forcereg.decompose(found, rule=rule)
    loaded = forcereg.load_net("net.prototxt", found)
    for held in (solver, solver.net, loaded, read_model(found)):
        made = forcereg.decompose(held, rule=rule)
        assert made.net == expected.net
        assert same_weights(made.weights, expected.weights)
        assert json_of(made.report) == json_of(expected.report)
    before = forcereg.decompose(solver, rule=rule)
    kept = {name: {at: values.copy() for at, values in blobs.items()} for name, blobs in before.weights.items()}
    solver.step(1)
    assert same_weights(before.weights, kept)  # a training that goes on doesn't change it
    files = made.write("held")
    assert files == {"model": "held.prototxt", "weights": "held.caffemodel.h5"}
    assert forcereg.decompose(before, rule=rule).report["skipped"] is not None
    assert forcereg.ranks(solver).skipped == forcereg.ranks(found).skipped


def json_of(report: dict[str, Any]) -> dict[str, Any]:
    """Without what the net's name is part of."""
    return {name: report[name] for name in ("layers", "totals", "net", "phase")}


def test_a_net_in_memory_is_written(trained: Path) -> None:
    solver = forcereg.Solver("solver.prototxt")
    made = forcereg.decompose(solver, rule=forcereg.MaxError(0.5))
    files = made.write("small")
    forcereg.finetune("solver.prototxt", model=files["model"], weights=files["weights"], max_iter=1)
    assert "<Solver>" in Path(files["model"]).read_text().splitlines()[0]
    use = forcereg.deploy(solver)
    assert Path(use.write("use")["weights"]).exists()
    with pytest.raises(UsageError, match="prefix is missing"):
        use.write()


# -- results


def test_results_say_themselves_shortly(folder: Path) -> None:
    made = forcereg.decompose(SNAPSHOT, rule=RULE)
    assert repr(made).startswith("Decomposition(conv1 ")
    for found in (made, forcereg.ranks(SNAPSHOT), forcereg.deploy(SNAPSHOT)):
        assert len(repr(found)) < 300


def test_results_can_be_pickled(folder: Path) -> None:
    """Without their observer, which may be anything."""

    def watch(event: Event) -> None:
        pass

    made = forcereg.decompose(SNAPSHOT, rule=RULE, observer=watch)
    again = pickle.loads(pickle.dumps(made))
    assert again.report == made.report
    again.write("again")
    assert pickle.loads(pickle.dumps(forcereg.ranks(SNAPSHOT, observer=watch))).report["layers"]


# -- the check itself


def test_what_is_checked_stays_the_function_it_is() -> None:
    @checked
    def call(batch: int | None, *, names: str | Sequence[str] = ()) -> Any:  # type: ignore[name-defined]  # noqa: F821
        """Says so."""
        return batch, names

    assert call.__doc__ == "Says so."
    assert call(None) == (None, ())
    assert call(np.int32(3), names=(one for one in "ab")) == (3, ["a", "b"])
    with pytest.raises(TypeError, match="missing a required argument: 'batch'"):
        call()
    with pytest.raises(UsageError, match="batch is 0; expected 1 or more"):
        call(0)


FILLERS: dict[str, Any] = {
    "int": 1,
    "Rule": RULE,
    "Any": torch.ones(4, 4),
    "Tensor": torch.ones(4, 4),
    "nn.Module": torch.nn.ReLU(),
}
"""By annotation, what passes for a keyword that has to be given; others take text."""
EVERY = [name for name in forcereg.__all__ if callable(getattr(forcereg, name)) and name.islower()]
EVERY += [f"lowrank.{name}" for name in forcereg.lowrank.__all__ if name != "Factors"]
EVERY += [f"nn.{name}" for name in forcereg.nn.__all__ if name.islower()] + ["Solver", "nn.Force"]


@pytest.mark.parametrize("name", EVERY)
def test_every_keyword_is_checked_before_anything_is_opened(name: str) -> None:
    """Of every public call, with what is of no kind at all, and with text where it would count as a number or True."""
    call: Any = operator.attrgetter(name)(forcereg)
    known = inspect.signature(call).parameters
    given = {one.name: FILLERS.get(str(one.annotation), "x") for one in known.values() if one.default is one.empty}
    for one in known.values():
        kind = str(one.annotation).removesuffix(" | None")
        if kind not in KINDS or name in UNCHECKED:
            continue
        for wrong in [object(), *(["x"] if kind in ("int", "float", "bool", "Rank") else [])]:
            with pytest.raises(UsageError, match=f"^{one.name} is .*(object|'x').*; expected "):
                call(**{**given, one.name: wrong})


UNCHECKED = {"layer"}
"""A decorator of classes: a slip there is a programming error."""


def test_public_calls_are_checked() -> None:
    homes = {name: home for name, home in forcereg._HOME.items() if home.startswith("forcereg.workflows.")}
    calls = [name for name in homes if name.islower()]
    without = {"shipped_configs", "layer_types", "devices"}  # which take nothing, or numbers that they check
    assert {name for name in calls if not hasattr(getattr(forcereg, name), "__wrapped__")} == without


# -- nothing stays behind


def test_determinism_ends_with_the_call(trained: Path) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    forcereg.train("solver.prototxt", max_iter=1, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_signals_are_the_main_thread_s(trained: Path) -> None:
    def train(**more: Any) -> int:
        return forcereg.train("solver.prototxt", max_iter=1, **more).iter

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train).result() == 1
        with pytest.raises(UsageError, match="sighup_effect is given in a thread; signals come to the main one alone"):
            pool.submit(train, sighup_effect="stop").result()


def test_an_observer_s_error_ends_the_call(folder: Path) -> None:
    """As it is, with nothing written."""

    def watch(event: Event) -> None:
        raise LookupError(event.kind)

    before = sorted(folder.iterdir())
    with pytest.raises(LookupError, match="progress"):
        forcereg.decompose(SNAPSHOT, rule=RULE, observer=watch)
    assert sorted(folder.iterdir()) == before
