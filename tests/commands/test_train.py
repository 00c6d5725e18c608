"""`forcereg train`: whole runs as a user starts them, signals, and one clear line for all that can be wrong."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.solver.loop import Solver
from tests.commands.conftest import Cli, said
from tests.conftest import TOP, RunCli
from tests.data.lmdbs import put_lmdb, raw
from tests.solver.nets import IMAGES, image_records, write_images, write_solver
from tests.solver.test_resume import assert_same

ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


# -- whole runs


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree like the project's: the shipped MNIST configs and, beside them, tiny LMDBs of their names."""
    top = tmp_path_factory.mktemp("checkout")
    mnist = top / "configs" / "examples" / "mnist"
    shutil.copytree(TOP / "configs" / "examples" / "mnist", mnist, ignore=shutil.ignore_patterns("*.h5", "*_lmdb"))
    random = np.random.default_rng(0)
    records = [(b"%08d" % i, raw(random.integers(0, 256, (1, 28, 28), np.uint8), i % 10)) for i in range(100)]
    for phase in ("train", "test"):
        put_lmdb(mnist / f"mnist_{phase}_lmdb", records)
    solver = mnist / "lenet_force_solver.prototxt"
    text = solver.read_text()
    for field, value in {"max_iter": 8, "test_iter": 1, "test_interval": 4, "display": 2, "snapshot": 4}.items():
        text, count = re.subn(rf"^{field}: \d+$", f"{field}: {value}", text, flags=re.MULTILINE)
        assert count == 1
    solver.write_text(text)
    return top


def test_readme_solver_from_the_top_and_its_resume(checkout: Path, run_cli: RunCli) -> None:
    """Nothing but numbers of iterations is changed; a fresh process goes on bit for bit."""
    solver = "configs/examples/mnist/lenet_force_solver.prototxt"
    assert 'net: "examples/mnist/lenet_train_test_force.prototxt"' in (checkout / solver).read_text()
    whole = run_cli("train", "--solver", solver, "--log-dir", "logs", cwd=checkout, env=ON_CPU)
    assert (whole.returncode, whole.stdout) == (0, "")
    assert "Traceback" not in whole.stderr
    assert len(re.findall(r"^W.*GPU.*no CUDA device.*running on the CPU$", whole.stderr, re.MULTILINE)) == 1
    assert len(re.findall(r"\] Optimization Done\.$", whole.stderr, re.MULTILINE)) == 2
    for pattern in (
        r"\] Solving LeNet$",
        r"Iteration 8, Testing net \(#0\)$",
        r"Test net output #0: accuracy = [\d.e-]+$",
    ):
        assert re.search(pattern, whole.stderr, re.MULTILINE), pattern
    assert list((checkout / "logs").glob("events.*"))

    mnist = checkout / "configs" / "examples" / "mnist"
    finals = {kind: mnist / f"lenet_force_iter_8.{kind}.h5" for kind in ("caffemodel", "solverstate")}
    first = {kind: path.rename(path.with_name(f"whole.{kind}.h5")) for kind, path in finals.items()}
    state = mnist / "lenet_force_iter_4.solverstate.h5"
    resumed = run_cli("train", "--solver", solver, "--snapshot", state, "--keep", "1", cwd=checkout, env=ON_CPU)
    assert resumed.returncode == 0
    assert numbers(resumed.stderr) == numbers(whole.stderr[whole.stderr.index("Iteration 4, Testing") :])
    for kind, path in finals.items():
        assert_same(first[kind], path)
    assert not state.exists()


def numbers(log: str) -> list[str]:
    """The log's messages from its first test on, without the measured pace, the time left and the paths."""
    lines = [line.partition("] ")[2] for line in log[log.index("Testing net") :].splitlines()[1:]]
    return [re.sub(r" \(\S+ iter/s, .*?\)", "", line) for line in lines if not re.search("napshot|Time left", line)]


def test_signals(tmp_path: Path) -> None:
    """SIGHUP writes a snapshot and the run goes on; SIGINT writes one and stops with exit code 0."""
    write_images(tmp_path)
    path = write_solver(tmp_path, 'max_iter: 100000000 display: 20 snapshot_prefix: "s"')
    log = tmp_path / "log"
    env = {**os.environ, **ON_CPU, "PYTHONPATH": str(TOP)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "forcereg", "train", "--solver", path], stdout=stream, stderr=stream, env=env
        )
    try:
        await_line(log, "Iteration 20,? ", process)
        process.send_signal(signal.SIGHUP)
        (saved,) = await_line(log, r"solver state to HDF5 file .*s_iter_(\d+)\.", process)
        await_line(log, rf"Iteration {int(saved) // 20 * 20 + 60},? ", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
    lines = log.read_text().splitlines()
    assert [line.partition("] ")[2] for line in lines[-2:]] == ["Optimization stopped early.", "Optimization Done."]
    states = sorted(int(name.stem.split("_")[-1].partition(".")[0]) for name in tmp_path.glob("s_*.solverstate.h5"))
    assert states[0] == int(saved)
    assert len(states) == 2
    for iteration in states:
        assert snapshot.read_state(tmp_path / f"s_iter_{iteration}.solverstate.h5").iteration == iteration


def await_line(log: Path, pattern: str, process: subprocess.Popen) -> tuple[str, ...]:
    """Waits until the log has a line with `pattern`; its groups."""
    for _ in range(1200):
        if match := re.search(pattern, log.read_text()):
            return match.groups()
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no line with {pattern!r}:\n{log.read_text()}")


def test_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the snapshot after two iterations doesn't fit."""
    write_images(tmp_path)
    path = write_solver(tmp_path, 'max_iter: 4 snapshot: 2 display: 1 snapshot_prefix: "out/s"')
    (tmp_path / "out").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = subprocess.run(
        [sys.executable, "-m", "forcereg", "train", "--solver", path],
        env={**os.environ, **ON_CPU, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert "Iteration 1" in done.stderr
    assert re.fullmatch(r"cannot write .*out/s_iter_2\.caffemodel\.h5: file too large; .*", said(done.stderr))
    assert list((tmp_path / "out").iterdir()) == []


# -- options


def test_weights_of_the_command_line_replace_the_field(tmp_path: Path, cli: Cli) -> None:
    write_images(tmp_path)
    for name in ("field", "first", "second"):
        snapshot.write_model(tmp_path / f"{name}.h5", {"ip": {0: np.zeros((3, 64), np.float32), 1: np.zeros(3)}})
    path = write_solver(tmp_path, 'weights: "field.h5" max_iter: 1 snapshot_prefix: "s"')
    code, _, err = cli("train", "--solver", path, "--weights", f"{tmp_path}/first.h5,{tmp_path}/second.h5")
    assert code == 0
    assert re.findall(r"Finetuning from .*/(\w+)\.h5", err) == ["first", "second"]
    assert "Layers left as initialised: conv" in err
    code, _, err = cli("train", "--solver", path)
    assert (code, re.findall(r"Finetuning from .*/(\w+)\.h5", err)) == (0, ["field"])
    (tmp_path / "field.h5").unlink()  # --snapshot clears the field: the file isn't even looked for
    code, _, err = cli("train", "--solver", path, "--snapshot", tmp_path / "s_iter_1.solverstate.h5")
    assert (code, "Finetuning" in err) == (0, False)


def test_level_and_stage_reach_the_train_net(tmp_path: Path, cli: Cli) -> None:
    rule = 'include { min_level: 2 stage: "deep" phase: TRAIN } '
    more = f'layer {{ name: "more" type: "Sigmoid" bottom: "ip" top: "more" {rule} }}'
    write_images(tmp_path, IMAGES + more)
    path = write_solver(tmp_path, "max_iter: 1 display: 1 snapshot_after_train: false")
    for options, shown in (((), False), (("--level", "2", "--stage", "x,deep"), True), (("--stage", "deep"), False)):
        code, _, err = cli("train", "--solver", path, *options)
        assert (code, "more = " in err) == (0, shown)


def test_statistics_with_a_rate_are_one_line_of_warning(tmp_path: Path, run_cli: RunCli) -> None:
    write_images(tmp_path, IMAGES.replace('type: "BatchNorm"', 'type: "BatchNorm" param { lr_mult: 1 }'))
    done = run_cli("test", "--model", "net.prototxt", "--weights", "none.h5", cwd=tmp_path, env=ON_CPU)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("forcereg: warning: ")
    assert "is taken as 0" in first
    assert second.startswith("forcereg: ")
    assert "none.h5" in second


# -- what can be wrong


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with net, data, solver and one good snapshot, s_iter_1."""
    write_images(tmp_path)
    path = write_solver(tmp_path, 'max_iter: 3 display: 1 snapshot_prefix: "s"')
    solver = Solver(path, observers=[lambda event: None])
    solver.step(1)
    solver.snapshot()
    return tmp_path


@pytest.mark.parametrize("option", ["--weights", "--snapshot"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt", "empty", "text", "missing", "other-kind"])
def test_bad_snapshot_files(option: str, damage: str, saved: Path, cli: Cli) -> None:
    kinds = ("caffemodel", "solverstate") if option == "--weights" else ("solverstate", "caffemodel")
    path = saved / f"s_iter_1.{kinds[0]}.h5"
    good = path.read_bytes()
    if damage == "other-kind":
        path = saved / f"s_iter_1.{kinds[1]}.h5"
    elif damage == "missing":
        path.unlink()
    else:
        middle = len(good) // 2
        flipped = bytes(byte ^ 0xFF for byte in good[middle : middle + 64])
        corrupt = good[:middle] + flipped + good[middle + 64 :]
        path.write_bytes({"truncated": good[:middle], "corrupt": corrupt, "empty": b"", "text": b"net"}[damage])
    code, out, err = cli("train", "--solver", saved / "solver.prototxt", option, path)
    assert (code, out) == (1, "")
    assert str(path) in said(err)
    assert "Iteration" not in err


def test_corrupt_model_of_a_good_state(saved: Path, cli: Cli) -> None:
    model = saved / "s_iter_1.caffemodel.h5"
    model.write_bytes(model.read_bytes()[:-100])
    code, _, err = cli("train", "--solver", saved / "solver.prototxt", "--snapshot", saved / "s_iter_1.solverstate.h5")
    assert code == 1
    assert f"{model}: damaged or truncated" in said(err)


Make = Callable[[Path], None]


def broken(old: str = "", new: str = "", extra: str = "") -> Make:
    """Writes data, solver and net into a folder; of `old` in the net the first is replaced by `new`."""

    def make(root: Path) -> None:
        assert old in IMAGES
        write_images(root, IMAGES.replace(old, new, 1))
        write_solver(root, extra or "max_iter: 3 snapshot_after_train: false display: 1")

    return make


def label_out_of_range(root: Path) -> None:
    broken()(root)
    shutil.rmtree(root / "train_lmdb")
    put_lmdb(root / "train_lmdb", image_records(8, [0, 1, 2, 0, 1, 7, 0, 1]))


def damaged_lmdb(root: Path) -> None:
    broken()(root)
    (root / "train_lmdb" / "data.mdb").write_bytes(b"nothing of the kind")


def no_net(root: Path) -> None:
    broken()(root)
    (root / "net.prototxt").unlink()


BAD: dict[str, tuple[Make, str]] = {
    "no-lmdb": (broken("train_lmdb", "gone"), r"net\.prototxt:3: layer 'data': .*'gone'"),
    "damaged-lmdb": (damaged_lmdb, r"layer 'data': .*train_lmdb"),
    "label": (label_out_of_range, r"layer 'data': .*00000005.*label 7 found, expected 0 to 2.*'loss'"),
    "no-net": (no_net, r"solver\.prototxt: net 'net\.prototxt' does not exist"),
    "field": (broken(extra="force_decy: 0.1"), r"solver\.prototxt:\d+:\d+: .*force_decy.*did you mean .force_decay.\?"),
    "value": (broken(extra="max_iter: ten"), r"solver\.prototxt:\d+:\d+: .*ten"),
    "layer-type": (
        broken('"Convolution"', '"Convolutoin"'),
        r"net\.prototxt:13: layer 'conv': unknown layer type 'Convolutoin'; did you mean \"Convolution\"\?",
    ),
    "blob": (
        broken('bottom: "ip" bottom: "l', 'bottom: "ipp" bottom: "l'),
        r"net\.prototxt:\d+: layer 'loss': .*'ipp'.*\"ip\"",
    ),
    "num-output": (broken("num_output: 4 "), r"net\.prototxt:\d+: layer 'conv': .*num_output"),
    "crop": (broken("crop_size: 6", "crop_size: 9"), r"layer 'data': .*crop"),
    "prefix": (
        broken(extra='max_iter: 3 display: 1 snapshot_prefix: "no/such/folder/s"'),
        r"solver\.prototxt: cannot write snapshots to '.*no/such/folder/s': .*snapshot_prefix",
    ),
    "prefix-in-a-file": (
        broken(extra='max_iter: 3 snapshot: 1 display: 1 snapshot_prefix: "net.prototxt/s"'),
        r"cannot write snapshots to '.*net\.prototxt/s'",
    ),
    "diverged": (
        broken(extra="max_iter: 50 base_lr: 1e30 snapshot_after_train: false"),
        r"solver\.prototxt: the loss is not finite at iteration \d+; .*; there is no snapshot yet; lower base_lr",
    ),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(make: Callable[[Path], None], says: str, tmp_path: Path, cli: Cli) -> None:
    make(tmp_path)
    code, out, err = cli("train", "--solver", tmp_path / "solver.prototxt")
    assert (code, out) == (1, "")
    assert re.search(says, said(err)), said(err)
    assert "Iteration 0" not in err


def test_solver_file_that_is_not_there(tmp_path: Path, cli: Cli) -> None:
    broken()(tmp_path)
    code, _, err = cli("train", "--solver", tmp_path / "solvr.prototxt")
    assert code == 1
    assert said(err) == f'{tmp_path}/solvr.prototxt: no such file; did you mean "solver.prototxt"?'


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["train"], "Missing option '--solver'. (see forcereg train --help)", id="no-solver"),
        pytest.param(["train", "--solver", "x", "--sovler"], "--sovler", id="option"),
        pytest.param(["train", "--solver", "x", "--keep", "0"], "'--keep'", id="keep"),
        pytest.param(["train", "--solver", "x", "--keep", "few"], "'--keep'", id="keep-word"),
        pytest.param(["train", "--solver", "x", "--weights", "a", "--snapshot", "b"], "a snapshot brings", id="both"),
        pytest.param(["train", "--solver", "S", "--gpu", "0", "--device", "cpu"], "--gpu and --device", id="devices"),
        pytest.param(["train", "--solver", "S", "--gpu", "some"], "--gpu is 'some'", id="gpu"),
        pytest.param(["train", "--solver", "S", "--device", "tpu"], "unknown device 'tpu'", id="device"),
        pytest.param(["trian"], "unknown command 'trian'; did you mean \"train\"?", id="command"),
    ],
)
def test_bad_usage_exits_with_2(args: list[str], says: str, tmp_path: Path, cli: Cli) -> None:
    broken()(tmp_path)
    code, out, err = cli(*(str(tmp_path / "solver.prototxt") if arg == "S" else arg for arg in args))
    assert (code, out) == (2, "")
    assert says in said(err)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(place: str, tmp_path: Path, cli: Cli) -> None:
    args = ["train", "--solver", str(tmp_path / "none.prototxt")]
    code, _, err = cli(*(["--debug", *args] if place == "before" else [*args, "--debug"]))
    assert code == 1
    assert "Traceback" in err
    assert "ForceregError" in err
    assert err.splitlines()[-1].startswith("forcereg: ")


def test_error_of_our_own_is_one_line_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli) -> None:
    def fail(self: Solver) -> None:
        raise RuntimeError("first line\nsecond line")

    broken()(tmp_path)
    monkeypatch.setattr(Solver, "solve", fail)
    code, _, err = cli("train", "--solver", tmp_path / "solver.prototxt")
    assert code == 1
    assert said(err) == "internal error: RuntimeError: first line (run again with --debug)"
