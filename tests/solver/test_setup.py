"""Which nets a solver trains and tests, in which state, and what is wrong with it if it can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.schema import SolverParameter
from forcereg.schema.text import parse_solver, read_solver
from forcereg.solver.loop import Solver
from forcereg.solver.setup import SolverSpecs, complete_prefix, solver_file, solver_specs
from tests.solver.nets import REGRESSION, regression, write_solver


def layer(name: str, rule: str = "") -> str:
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: 2 }} }} {rule} }}\n'


STAGED = (
    layer("always")
    + layer("train", "include { phase: TRAIN }")
    + layer("test", "include { phase: TEST }")
    + layer("deep", "include { min_level: 2 }")
    + layer("extra", 'include { stage: "extra" }')
    + layer("both", 'include { stage: "extra" stage: "more" }')
)


def specs(root: Path, text: str, **options: object) -> SolverSpecs:
    for name in ("net", "a", "b"):
        (root / f"{name}.prototxt").write_text(f'name: "{name}" ' + STAGED)
    path = root / "solver.prototxt"
    path.write_text(text)
    return solver_specs(read_solver(path), **options)


def names(spec: object) -> list[str]:
    return [one.name for one in spec.layers]


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        pytest.param('net: "net.prototxt"', [], id="net-without-test-iter"),
        pytest.param('net: "net.prototxt" test_iter: 1 test_interval: 5', ["net"], id="net"),
        pytest.param('net: "net.prototxt" test_iter: 1 test_iter: 2 test_interval: 5', ["net", "net"], id="net-twice"),
        pytest.param('train_net: "net.prototxt"', [], id="train-net"),
        pytest.param(
            'train_net: "net.prototxt" test_net: "b.prototxt" test_net: "a.prototxt" test_iter: 1 test_iter: 1'
            " test_interval: 5",
            ["b", "a"],
            id="test-nets",
        ),
        pytest.param(
            'net: "net.prototxt" test_net: "b.prototxt" test_iter: 1 test_iter: 1 test_iter: 1 test_interval: 5',
            ["b", "net", "net"],
            id="generic-net-takes-the-rest",
        ),
        pytest.param(
            f'net: "net.prototxt" test_net: "b.prototxt" test_net_param {{ name: "inline" {STAGED} }}'
            " test_iter: 1 test_iter: 1 test_iter: 1 test_interval: 5",
            ["inline", "b", "net"],
            id="order",
        ),
        pytest.param(
            f'net_param {{ name: "inline" {STAGED} }} test_iter: 1 test_interval: 1', ["inline"], id="net-param"
        ),
        pytest.param(
            f'train_net_param {{ name: "inline" {STAGED} }} test_net: "a.prototxt" test_iter: 1 test_interval: 1',
            ["a"],
            id="train-net-param",
        ),
    ],
)
def test_nets_in_order(text: str, tests: list[str], tmp_path: Path) -> None:
    found = specs(tmp_path, text)
    assert [spec.name for spec in found.tests] == tests
    assert names(found.train) == ["always", "train"]
    assert all(names(spec) == ["always", "test"] for spec in found.tests)
    assert found.root == (tmp_path if ".prototxt" in text else Path.cwd())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "found none", id="none"),
        pytest.param('net: "net.prototxt" train_net: "a.prototxt"', "found net and train_net", id="two"),
        pytest.param('net: "nte.prototxt"', "net 'nte.prototxt' does not exist under", id="no-file"),
        pytest.param(
            'train_net: "a.prototxt" test_net: "c.prototxt" test_iter: 1 test_interval: 1',
            "test_net 'c.prototxt' does not exist under",
            id="no-test-file",
        ),
        pytest.param(
            'train_net: "a.prototxt" test_net: "b.prototxt" test_iter: 1 test_iter: 1 test_interval: 1',
            "has 2 test_iter entries for 1 test nets; give one each",
            id="too-many-test-iter",
        ),
        pytest.param(
            'net: "a.prototxt" test_net: "b.prototxt" test_interval: 1',
            "has 0 test_iter entries for 1 test nets; give one each",
            id="too-few-test-iter",
        ),
        pytest.param(
            'net: "a.prototxt" test_iter: 1', "test nets need test_interval > 0; found 0", id="no-test-interval"
        ),
        pytest.param(
            'net: "a.prototxt" test_iter: 1 test_iter: 1 test_interval: 1 test_state { }',
            "has 1 test_state entries for 2 test nets; give none or one each",
            id="test-state-count",
        ),
    ],
)
def test_contradictions(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError) as caught:
        specs(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'solver.prototxt'}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "options", "train"),
    [
        pytest.param("", {}, [], id="plain"),
        pytest.param("train_state { level: 2 }", {}, ["deep"], id="train-state-level"),
        pytest.param("train_state { level: 2 }", {"level": 0}, [], id="level-overrides"),
        pytest.param("", {"level": 3}, ["deep"], id="level"),
        pytest.param("", {"stages": ("extra",)}, ["extra"], id="stage"),
        pytest.param("", {"stages": ("",)}, [], id="empty-stage-is-ignored"),
        pytest.param('train_state { stage: "extra" }', {"stages": ("more",)}, ["extra", "both"], id="stages-append"),
    ],
)
def test_state_of_the_train_net(text: str, options: dict[str, object], train: list[str], tmp_path: Path) -> None:
    found = specs(tmp_path, f'net: "net.prototxt" test_iter: 1 test_interval: 1 {text}', **options)
    assert names(found.train) == ["always", "train", *train]
    assert names(found.tests[0]) == ["always", "test"]


def test_state_of_each_test_net(tmp_path: Path) -> None:
    text = 'net: "net.prototxt" test_iter: 1 test_iter: 1 test_interval: 1 test_state { level: 2 } test_state { '
    found = specs(tmp_path, text + 'stage: "extra" }')
    assert [names(spec)[2:] for spec in found.tests] == [["deep"], ["extra"]]


def test_the_nets_own_state_comes_first(tmp_path: Path) -> None:
    inline = f'net_param {{ state {{ stage: "extra" level: 2 }} {STAGED} }} train_state {{ level: 1 stage: "more" }}'
    assert names(specs(tmp_path, inline).train) == ["always", "train", "extra", "both"]


def test_root_is_where_the_net_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "examples" / "mnist"
    deep.mkdir(parents=True)
    (deep / "net.prototxt").write_text(STAGED)
    (deep / "solver.prototxt").write_text('net: "examples/mnist/net.prototxt"')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, deep, elsewhere):
        monkeypatch.chdir(folder)
        assert solver_specs(read_solver(deep / "solver.prototxt")).root == tmp_path


@pytest.mark.parametrize("kind", ["path", "name", "text", "one-line-text", "message", "solver-file"])
def test_what_a_solver_may_be(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(REGRESSION.replace("PARAMS", ""))
    path = write_solver(tmp_path, "momentum: 0.5" + "  # long as solvers are" * 20)
    text = path.read_text()
    message = parse_solver(text).message
    assert isinstance(message, SolverParameter)
    given = {
        "path": path,
        "name": "solver.prototxt",
        "text": text,
        "one-line-text": " ".join(line.partition("#")[0] for line in text.splitlines()),
        "message": message,
        "solver-file": solver_file(text),
    }[kind]
    solver = Solver(given, observers=[lambda event: None])
    assert solver.param.momentum == 0.5
    assert solver.net.spec.name == "regression"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        pytest.param("average_loss: 0", "average_loss is 0; expected >= 1", id="average_loss"),
        pytest.param("iter_size: 0", "iter_size is 0; expected >= 1", id="iter_size"),
        pytest.param("max_iter: -1", "max_iter is -1; expected >= 0", id="max_iter"),
        pytest.param("snapshot: -1", "snapshot is -1; expected >= 0", id="snapshot"),
        pytest.param('weight_decay: 0.1 regularization_type: "L3"', "unknown regularization_type 'L3'", id="decay"),
        pytest.param('type: "SDG"', "unknown solver type 'SDG'; did you mean \"SGD\"?", id="type"),
        pytest.param(
            'force_type: "Degradaton"',
            "solver.prototxt: unknown force_type 'Degradaton'; did you mean",
            id="force_type",
        ),
        pytest.param('force_decay_type: "x"', "solver.prototxt: unknown force_decay_type 'x'", id="force_decay_type"),
        pytest.param('force_direction: "x"', "solver.prototxt: unknown force_direction 'x'", id="force_direction"),
        pytest.param('weights: "none.caffemodel.h5"', "none.caffemodel.h5", id="weights"),
    ],
)
def test_settings_that_cannot_run(extra: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError) as caught:
        regression(tmp_path, extra)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regularization_type_matters_only_with_decay(tmp_path: Path) -> None:
    assert regression(tmp_path, 'regularization_type: "L3"')[0].iter == 0


@pytest.mark.parametrize(
    ("written", "completed"),
    [
        pytest.param("out/net", "out/net", id="prefix"),
        pytest.param("out", "out/my_solver", id="folder"),
        pytest.param("new/", "new/my_solver", id="slash"),
    ],
)
def test_prefix_that_is_a_folder_gets_the_solvers_stem(written: str, completed: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = write_solver(tmp_path, f'snapshot_prefix: "{written}"', name="my_solver.prototxt")
    file = read_solver(path)
    complete_prefix(file, tmp_path)
    assert file.message.snapshot_prefix == completed


def test_prefix_defaults_to_the_solvers_path(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path)
    assert solver.prefix() == tmp_path / "solver"
