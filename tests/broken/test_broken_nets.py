"""Whatever is fed to the command line as a net or solver: one clear line, exit code 1, bounded memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forcereg.registry as registry
import forcereg.system.memory
from forcereg.errors import LONGEST, ForceregError
from forcereg.net.load import load_net, shape_net
from forcereg.solver.loop import Solver
from forcereg.system.shipped import configs_dir
from tests.broken.case import COMMANDS, NET, SOLVER, Case, input_layer
from tests.broken.cases import ALL, CASES
from tests.conftest import TOP as CHECKOUT
from tests.conftest import RunCli

LONGEST_LINE = LONGEST + 20


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """A process of limited memory."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.broken.runner"],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def said(result: dict[str, Any]) -> str:
    """The one line of the error, which is the last; nothing but log lines before it."""
    assert "Traceback" not in result["err"] and "internal error" not in result["err"], result["err"]
    lines = result["err"].splitlines()
    assert [line.startswith("forcereg: ") for line in lines] == [False] * (len(lines) - 1) + [True], result["err"]
    assert max(map(len, lines)) <= LONGEST_LINE
    return lines[-1]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_case(case: Case, runner: subprocess.Popen[str]) -> None:
    assert runner.stdin is not None and runner.stdout is not None
    print(case.id, file=runner.stdin, flush=True)
    answer = runner.stdout.readline()
    assert answer, "the process that runs the cases ended in this one"
    for command, result in json.loads(answer).items():
        assert result["code"] == case.code, (command, result)
        lines = [said(result)] if case.code else (result["out"] + result["err"]).splitlines()
        if COMMANDS[command][0] == "check":
            lines = result["out"].splitlines()
        assert any(case.found_in(line) for line in lines), (command, result["err"] or result["out"])
        assert result["growth"] < case.growth << 20, command


def test_the_table_is_complete() -> None:
    assert len(CASES) == len(ALL) >= 80
    assert {case.kind for case in ALL} >= {*registry.layer, *registry.source}


PROCESSES = (
    "10MB-of-braces",
    "noise",
    "Input-dim-huge",
    "unknown-bottom",
    "Data-source-missing",
    "solver-unknown-type",
)


@pytest.mark.parametrize("id", PROCESSES)
def test_as_a_process(id: str, tmp_path: Path, run_cli: RunCli) -> None:
    case = CASES[id]
    case.write(str(tmp_path))
    done = run_cli(*COMMANDS["check-solver" if id.startswith("solver") else "summary"], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "\n" not in said({"err": done.stderr})
    assert any(map(case.found_in, (done.stdout + done.stderr).splitlines())), done.stderr


# -- legal nets that are larger than memory


@pytest.fixture
def solver_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which the net of SOLVER is."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`set_free(bytes)`: so much memory is left."""
    return lambda size: monkeypatch.setattr(forcereg.system.memory, "free_memory", lambda: size)


def product(inputs: int, outputs: int, more: str = "") -> str:
    layer = f"inner_product_param {{ num_output: {outputs} }} {more}"
    return f'{input_layer("x", (1, inputs))}layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" {layer} }}\n'


def test_weights_are_compared_with_the_free_memory(set_free: Callable[[int], None]) -> None:
    set_free(1 << 30)
    with pytest.raises(ForceregError) as info:
        load_net(product(20_000, 20_000))  # nothing is written, so that this needs no memory
    assert str(info.value) == (
        "<text>:2: layer 'ip': needs 1.5 GiB for the net's weights, but only 1.0 GiB of memory are free; "
        "use smaller sizes"
    )
    assert load_net(product(10, 10)).shapes["y"] == (1, 10)
    assert shape_net(product(20_000, 20_000)).shapes["y"] == (1, 20_000)


def test_shared_weights_count_once(set_free: Callable[[int], None]) -> None:
    set_free(50 * 100 * 4 + 100 * 4)
    text = product(50, 100, 'param { name: "w" } param { name: "b" }')
    second = text.splitlines()[1].replace('"ip"', '"ip2"').replace('top: "y"', 'top: "z"')
    load_net(text + second)
    with pytest.raises(ForceregError, match=r"layer 'ip2?': needs 0\.0 GiB of the 0\.0 GiB for the net's weights"):
        load_net(text + second.replace('name: "w"', 'name: "v"'))


WEIGHTS = 6 * 4 + 2 * 4
TOP = 6 * 4


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        pytest.param(WEIGHTS - 1, "layer 'ip': .* for the net's weights", id="weights"),
        pytest.param(3 * WEIGHTS - 1, "layer 'ip': .* for gradients, updates and history", id="history"),
        pytest.param(3 * WEIGHTS, "", id="enough"),
    ],
)
def test_training_is_compared_with_the_free_memory(
    free: int, expected: str, set_free: Callable[[int], None], solver_folder: Path
) -> None:
    set_free(free)
    if expected:
        with pytest.raises(ForceregError, match=expected):
            Solver(SOLVER)
    else:
        Solver(SOLVER).solve()


def test_blobs_are_compared_with_the_free_memory(set_free: Callable[[int], None], solver_folder: Path) -> None:
    solver = Solver(SOLVER)
    set_free(TOP - 1)
    with pytest.raises(ForceregError, match=r"net\.prototxt:1: layer 'd': needs 0\.0 GiB for its top"):
        solver.solve()
    set_free(TOP)
    solver.solve()


def test_a_control_group_counts(tmp_path: Path) -> None:
    assert forcereg.system.memory._group_memory(tmp_path) == forcereg.system.memory.ALL_OF_IT
    (tmp_path / "memory.max").write_text("max\n")
    assert forcereg.system.memory._group_memory(tmp_path) == forcereg.system.memory.ALL_OF_IT
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 4000\n")
    assert forcereg.system.memory._group_memory(tmp_path) == 2000
    assert forcereg.system.memory.free_memory() > 0


# -- mutations of the nets that come with forcereg

SHIPPED = {
    "lenet": ("examples/mnist/lenet_train_test.prototxt", (2, 1, 28, 28)),
    "cifar10_full": ("examples/cifar10/cifar10_full_train_test.prototxt", (2, 3, 32, 32)),
    "resnet20": ("examples/cifar10/cifar10_resnet20_train_test.prototxt", (2, 3, 32, 32)),
}
NUMBER = re.compile(r"(?<=: )-?\d[\d.e-]*")
NAME = re.compile(r'"[^"\n]*"')
EXTREMES = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "33",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "0.5",
    "1e38",
    "1e-38",
    "-1e38",
    "nan",
    "inf",
    "-inf",
]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """`text` with one to three lines deleted, doubled or swapped, numbers made extreme or names exchanged."""

    def place(count: int) -> int:
        return draw(st.integers(0, count - 1))

    def replaced(pattern: re.Pattern[str], value: str) -> str:
        found = list(pattern.finditer(text))
        match = found[place(len(found))]
        return text[: match.start()] + value + text[match.end() :]

    for _ in range(draw(st.integers(1, 3))):
        lines = text.split("\n")
        at, other = place(len(lines)), place(len(lines))
        kind = draw(st.sampled_from(("delete", "double", "swap", "number", "name")))
        if kind == "number":
            text = replaced(NUMBER, draw(st.sampled_from(EXTREMES)))
        elif kind == "name":
            text = replaced(NAME, draw(st.sampled_from(NAME.findall(text))))
        else:
            if kind == "swap":
                lines[at], lines[other] = lines[other], lines[at]
            else:
                lines[at : at + 1] = [lines[at]] * (2 if kind == "double" else 0)
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("name", SHIPPED)
@given(data=st.data())
@settings(max_examples=150)
def test_mutations(name: str, data: st.DataObject) -> None:
    path, shape = SHIPPED[name]
    text = data.draw(mutated((configs_dir() / path).read_text()))
    phase = data.draw(st.sampled_from(("TRAIN", "TEST")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net = shape_net(text, phase, input_shapes={"data": shape, "label": shape[:1]})
        except ForceregError as error:
            assert str(error).isprintable() and 0 < len(str(error)) <= LONGEST
        else:
            assert all(blob.is_meta for blobs in net.params.values() for blob in blobs)
