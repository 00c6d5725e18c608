"""What each command loads, and what scripts/bench/startup.py makes of its measurements; seconds decide no test."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import startup
from startup import COMMANDS, IMAGES, NEEDS, above, figures, first_iteration, report

from forcereg.__main__ import COMMANDS as ALL
from tests.solver.nets import write_images, write_solver

TOP = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
from forcereg.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(json.dumps([str(end.code or 0), *sys.modules]))
"""
COSTLY = {
    "torch",
    "numpy",
    "google.protobuf",
    "h5py",
    "lmdb",
    "plyvel",
    "PIL",
    "rich",
    "matplotlib",
    "optuna",
    "sklearn",
    "sympy",
}
"""What takes long to load, of all that commands use; and sympy, which stands for torch's compiler."""
TORCH = {"torch", "numpy", "google.protobuf"}
UNSAVED = ("--set", "snapshot=0", "--set", "snapshot_after_train=false")
SCHEDULE = "max_iter: 2 test_iter: 1 test_interval: 1 display: 1 force_decay: 0.001"


def loaded(folder: Path, *args: str) -> tuple[int, set[str]]:
    """Exit code of the command line in a process of its own, and which of `COSTLY` were loaded then."""
    call = [sys.executable, "-c", RUN, *args]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    code, *modules = json.loads(done.stdout.splitlines()[-1])
    return int(code), COSTLY & {*modules}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net, its LMDBs, its solver, and a model."""
    root = write_images(tmp_path_factory.mktemp("startup"))
    write_solver(root, f'{SCHEDULE} snapshot_prefix: "net"')
    loaded(root, "train", "--solver", "solver.prototxt")
    return root


@pytest.mark.parametrize("name", [(), *[(name,) for name in ALL]], ids=lambda args: "".join(args) or "forcereg")
def test_help_loads_nothing_costly(name: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded(tmp_path, *name, "--help") == (0, set())


@pytest.mark.parametrize(
    ("args", "code", "needed"),
    [
        pytest.param("--version", 0, set(), id="version"),
        pytest.param("train", 2, set(), id="usage"),
        pytest.param("train --solver s --weights w --snapshot s", 2, set(), id="options-that-exclude-each-other"),
        pytest.param("train --solver missing.prototxt", 1, {"google.protobuf"}, id="no-such-solver"),
        pytest.param("train --solver solver.prototxt --set base_lr=x", 1, {"google.protobuf"}, id="bad-setting"),
        pytest.param("configs", 0, set(), id="configs"),
        pytest.param("new lenet new", 0, {"google.protobuf"}, id="new"),
        pytest.param("data mean train_lmdb m.binaryproto", 0, {"numpy", "google.protobuf", "lmdb"}, id="data-mean"),
        pytest.param(f"train --solver solver.prototxt {' '.join(UNSAVED)}", 0, TORCH | {"lmdb"}, id="train"),
        pytest.param("train --solver solver.prototxt", 0, TORCH | {"lmdb", "h5py"}, id="train-and-save"),
        pytest.param("test --model net.prototxt --weights net_iter_2.caffemodel.h5 --iterations 1", 0,
                     TORCH | {"lmdb", "h5py"}, id="test"),
        pytest.param("check solver.prototxt", 0, TORCH | {"lmdb"}, id="check"),
        pytest.param("draw net.prototxt net.txt", 0, TORCH | {"lmdb"}, id="draw"),
        pytest.param("summary net.prototxt", 0, TORCH | {"lmdb", "rich"}, id="summary"),
        pytest.param("layers", 0, TORCH | {"rich"}, id="layers"),
        pytest.param("ranks net_iter_2.caffemodel.h5", 0, TORCH | {"h5py", "rich"}, id="ranks"),
        pytest.param("confusion --model net.prototxt --weights net_iter_2.caffemodel.h5", 0,
                     TORCH | {"lmdb", "h5py", "rich"}, id="confusion"),
        pytest.param("deploy net.prototxt -o use.prototxt", 0, TORCH | {"lmdb"}, id="deploy"),
        pytest.param("convert net_iter_2.caffemodel.h5 net.caffemodel", 0, TORCH | {"lmdb", "h5py"}, id="convert"),
        pytest.param("device_query", 0, TORCH, id="device_query"),
    ],
)  # fmt: skip
def test_a_command_loads_what_it_needs(args: str, code: int, needed: set[str], folder: Path) -> None:
    found, modules = loaded(folder, *args.split())
    assert modules <= needed and found == code


def test_full_collections_are_rare_while_a_command_runs(tmp_path: Path) -> None:
    code = RUN + "import gc; print(gc.get_threshold()[2])"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) > gc.get_threshold()[1]


# -- the benchmark


def test_every_command_is_measured() -> None:
    assert set(COMMANDS) == set(ALL) and set(NEEDS) < set(ALL)


LINES = [
    (0.1, "I0101 00:00:00.000000     1 solver.py:1] Solving LeNet"),
    (0.2, "I0101 00:00:00.000000     1 solver.py:1] Iteration 0, Testing net (#0)"),
    (1.2, "I0101 00:00:00.000000     1 solver.py:1]     Test net output #0: accuracy = 0.1"),
    (1.5, "I0101 00:00:00.000000     1 solver.py:1] Iteration 0 (0 iter/s, 0.1s/1 iters), loss = 2.3"),
    (1.6, "I0101 00:00:00.000000     1 solver.py:1] Iteration 1, Testing net (#0)"),
    (9.9, "I0101 00:00:00.000000     1 solver.py:1]     Test net output #0: accuracy = 0.1"),
]


@pytest.mark.parametrize(
    ("lines", "seconds"), [pytest.param(LINES, 0.5, id="tested"), pytest.param(LINES[:1] + LINES[3:], 1.5, id="not")]
)
def test_the_test_before_the_first_iteration_is_taken_off(lines: list[tuple[float, str]], seconds: float) -> None:
    assert first_iteration(lines) == pytest.approx(seconds)


FOUND = {
    "import torch": [2.0, 1.0, 1.5, 1.5],  # before train, before layers, and again
    "--help": [0.1, 0.2, 0.1, 0.1],
    "train": [2.5, 2.5],
    "layers": [2.2, 1.7],
    "first": [0.4, 0.6],
    "first, tested": [1.4, 1.8],
}


def test_differences_are_of_neighbours() -> None:
    assert above(FOUND) == pytest.approx({"train": 0.75, "layers": 0.7})


def test_the_slowest_command_is_told_and_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    told = {figure.what: (figure.value, figure.verdict) for figure in figures(FOUND)}
    slowest = told["any command above import torch (most: train)"]
    assert slowest == (pytest.approx(0.75), "reached")
    assert [verdict for _, verdict in told.values()] == ["reached"] * 3 + ["missed"]
    report(FOUND)
    out = capsys.readouterr().out
    assert "plot           not measured: it needs matplotlib" in out and "+0.75" in out and "+0.70" in out


def test_train_is_measured_by_its_own_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command on a small LeNet set, through the probe."""
    monkeypatch.setattr(startup, "COMMANDS", {"configs": ()})
    monkeypatch.setattr(startup, "IMAGES", 600)
    monkeypatch.setattr(startup, "SET_UP", ())
    startup.set_up(tmp_path, None)
    found = startup.measure(tmp_path, 1)
    assert IMAGES == 60_000 and {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("import torch", "--help", "configs", "first", "first, tested"), 1
    )
    assert min(value for values in found.values() for value in values) > 0
