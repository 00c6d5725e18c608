"""Whatever is fed to the command line as a net or solver: one clear line, exit code 1, bounded memory."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forcereg.memory
import forcereg.registry as registry
from forcereg.errors import LONGEST, ForceregError
from forcereg.load import load_net, shape_net
from forcereg.shipped import configs_dir
from forcereg.solver.loop import Solver
from tests.broken.case import COMMANDS, NET, SOLVER, Case, input_layer
from tests.conftest import TOP, RunCli

GROUPS = ("texts", "nets", "layers", "data", "solvers")
"""The modules of tests.broken that hold CASES."""
CASES = {group: import_module(f"tests.broken.{group}").CASES for group in GROUPS}
LONGEST_LINE = LONGEST + 20


@functools.cache
def results(group: str) -> dict[str, Any]:
    """What the cases of a group did, all run in one process of limited memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.broken.runner", group],
        cwd=TOP,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        timeout=3000,  # nothing depends on it
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def said(result: dict[str, Any]) -> str:
    """The one line of the error, which is the last; nothing but log lines before it."""
    assert "Traceback" not in result["err"] and "internal error" not in result["err"], result["err"]
    lines = result["err"].splitlines()
    assert [line.startswith("forcereg: ") for line in lines] == [False] * (len(lines) - 1) + [True], result["err"]
    assert max(map(len, lines)) <= LONGEST_LINE
    return lines[-1]


@pytest.mark.parametrize(
    ("group", "case"), [pytest.param(group, case, id=case.id) for group in GROUPS for case in CASES[group]]
)
def test_case(group: str, case: Case) -> None:
    for command, result in results(group)[case.id].items():
        assert result["code"] == case.code, (command, result)
        lines = [said(result)] if case.code else (result["out"] + result["err"]).splitlines()
        if command.startswith("check"):
            lines = result["out"].splitlines()
        assert any(case.found_in(line) for line in lines), (command, result["err"] or result["out"])
        assert result["growth"] < case.growth << 20, command


def test_the_table_is_complete() -> None:
    cases = [case for group in CASES.values() for case in group]
    assert len({case.id for case in cases}) == len(cases) >= 80
    assert {case.kind for case in cases} >= {*registry.layer, *registry.source}


PROCESSES = ("10MB-of-braces", "noise", "Input-dim-huge", "unknown-bottom", "Data-source-missing", "large-weights")


@pytest.mark.parametrize("id", PROCESSES)
def test_as_a_process(id: str, tmp_path: Path, run_cli: RunCli) -> None:
    case = next(case for group in CASES.values() for case in group if case.id.removeprefix("solver-") == id)
    case.write(str(tmp_path))
    command = case.commands[-1]
    # the limit of a shell's `ulimit -v`, which the process has from its first instruction on
    done = run_cli(*COMMANDS[command], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, address_space=6 << 30)
    assert done.returncode == 1, done.stderr
    assert case.found_in(said({"err": done.stderr})), done.stderr


# -- legal nets that are larger than memory


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 MiB left."""
    monkeypatch.setattr(forcereg.memory, "free_memory", lambda: 100 << 20)


def product(inputs: int, outputs: int, more: str = "") -> str:
    layer = f"inner_product_param {{ num_output: {outputs} }} {more}"
    return f'{input_layer("x", (1, inputs))}layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" {layer} }}\n'


@pytest.mark.usefixtures("poor")
def test_weights_are_compared_with_the_free_memory() -> None:
    with pytest.raises(ForceregError) as info:
        load_net(product(6000, 6000))
    assert str(info.value) == (
        "<text>:2: layer 'ip': needs 0.1 GiB for the net's weights, but only 0.1 GiB of memory are free; "
        "use smaller sizes"
    )
    assert load_net(product(1000, 1000)).shapes["y"] == (1, 1000)
    assert shape_net(product(6000, 6000)).shapes["y"] == (1, 6000)


@pytest.mark.usefixtures("poor")
def test_shared_weights_count_once() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    text = product(4000, 4000, shared)
    more = text.splitlines()[1].replace('"ip"', '"ip2"').replace('top: "y"', 'top: "z"')
    load_net(text + more)
    with pytest.raises(ForceregError, match=r"layer 'ip': needs 0\.1 GiB of the 0\.1 GiB for the net's weights"):
        load_net(text + more.replace('name: "w"', 'name: "v"'))


@pytest.mark.usefixtures("poor")
@pytest.mark.parametrize(
    ("net", "expected"),
    [
        pytest.param(NET.replace("dim: 3", "dim: 3000").replace("output: 2", "output: 3000"), "history", id="history"),
        pytest.param(NET.replace("dim: 2 ", "dim: 20000000 "), "layer 'd': needs 0.2 GiB for its top", id="top"),
    ],
)
def test_training_is_compared_with_the_free_memory(
    net: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(net)
    with pytest.raises(ForceregError, match=expected):
        Solver(SOLVER).solve()


def test_a_control_group_counts(tmp_path: Path) -> None:
    assert forcereg.memory._group_memory(tmp_path) == forcereg.memory.ALL_OF_IT
    (tmp_path / "memory.max").write_text("max\n")
    assert forcereg.memory._group_memory(tmp_path) == forcereg.memory.ALL_OF_IT
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 4000\n")
    assert forcereg.memory._group_memory(tmp_path) == 2000
    assert 0 < forcereg.memory.free_memory()


# -- mutations of the nets that come with forcereg

SHIPPED = {
    "lenet": ("examples/mnist/lenet_train_test.prototxt", (2, 1, 28, 28)),
    "cifar10_full": ("examples/cifar10/cifar10_full_train_test.prototxt", (2, 3, 32, 32)),
    "resnet20": ("examples/cifar10/cifar10_resnet20_train_test.prototxt", (2, 3, 32, 32)),
}
NUMBER = re.compile(r"(?<=: )-?\d[\d.e-]*")
NAME = re.compile(r'"[^"\n]*"')
EXTREMES = (
    "0 1 -1 2 3 33 65536 2147483647 2147483648 4294967295 4294967296 9223372036854775807 -9223372036854775808 "
    "0.5 1e38 1e-38 -1e38 nan inf -inf"
).split()


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
