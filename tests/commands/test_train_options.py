"""`forcereg train`: what options change without the prototxt being touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.report.curves import read_run
from forcereg.schema import SolverParameter
from forcereg.schema.text import parse_text
from forcereg.solver import launch
from tests.commands.conftest import Cli, said
from tests.solver.nets import IMAGES, write_images, write_solver


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images net and a solver of four iterations in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    write_solver(tmp_path, 'max_iter: 4 display: 1 snapshot: 2 snapshot_prefix: "s" momentum: 0.9')
    return tmp_path


def solver_of(model: str) -> Any:
    """The solver that a model says it comes from."""
    return parse_text(snapshot.read_model(model).attrs["forcereg_solver"], SolverParameter)


TRAIN = ("train", "-solver", "solver.prototxt")


def test_settings_reach_the_run_and_its_snapshots(root: Path, cli: Cli) -> None:
    before = (root / "solver.prototxt").read_bytes()
    settings = ("base_lr=0.5", "lr_policy=multistep", "gamma=0.1", "stepvalue=[1,2]", "snapshot_prefix=other")
    code, _, err = cli(*TRAIN, *(word for one in settings for word in ("--set", one)), "--max-iter", 3, "--seed", 11)
    assert code == 0
    assert re.findall(r"Iteration \d, lr = (\S+)$", err, re.MULTILINE) == ["0.5", "0.05", "0.005"]
    assert not list(root.glob("s_iter*"))
    told = solver_of("other_iter_3.caffemodel.h5")
    assert (list(told.stepvalue), told.max_iter, told.random_seed, told.momentum) == ([1, 2], 3, 11, pytest.approx(0.9))
    assert snapshot.read_model("other_iter_3.caffemodel.h5").attrs["forcereg_seed"] == "11"
    assert (root / "solver.prototxt").read_bytes() == before


def test_rates_beyond_caffe(root: Path, cli: Cli) -> None:
    """Resumed in the middle they go on where they were."""
    cosine = ("--set", "lr_policy=cosine", "--set", "eta_min=0.02", "--warmup", 2)
    for more, expected in (
        (cosine, [0.05, 0.0662132, 0.06, 0.0317157]),
        (("--set", "lr_policy=onecycle", "--set", "pct_start=0.5"), [0.004, 0.1, 0.05, 4e-07]),
    ):
        code, _, err = cli(*TRAIN, *more)
        found = re.findall(r"Iteration \d, lr = (\S+)$", err, re.MULTILINE)
        assert code == 0 and [float(one) for one in found] == pytest.approx(expected, rel=1e-5)
        code, _, err = cli(*TRAIN, *more, "--snapshot", "s_iter_2.solverstate.h5")
        assert code == 0 and re.findall(r"Iteration \d, lr = (\S+)$", err, re.MULTILINE) == found[2:]


def test_averaged_weights_are_tested_and_saved_beside(root: Path, cli: Cli) -> None:
    """With cosine, warm-up, force, masks, clipping and old snapshots deleted: resumed, the same bytes."""
    write_images(root, IMAGES.replace('name: "conv" type', 'name: "conv" connectivity_mode: DISCONNECTED_ELTWISE type'))
    settings = (
        "lr_policy=cosine force_decay=0.01 clip_gradients=1 weight_decay=0.01 test_iter=2 test_interval=2 snapshot=1"
    )
    more = [word for one in settings.split() for word in ("--set", one)]
    more += ["--ema", "0.9", "--warmup", "2", "--keep", "2", "--log-json", "log.json", "--seed", "3"]
    more += ["--keep-best", "loss_ema"]
    code, _, err = cli(*TRAIN, *more)
    ends = ("3.caffemodel", "3.solverstate", "3_ema.caffemodel", "4.caffemodel", "4.solverstate", "4_ema.caffemodel")
    best = [f"s_best{end}.h5" for end in (".caffemodel", ".solverstate", "_ema.caffemodel")]
    files = [*(f"s_iter_{end}.h5" for end in ends), *best]
    assert code == 0 and sorted(path.name for path in root.glob("s_*.h5")) == sorted(files)
    assert "Snapshotting averaged weights to HDF5 file" in err
    assert re.search(r"Test net output #2: accuracy_ema = ", err)
    assert {"test accuracy_ema", "test loss_ema"} <= read_run(root / "log.json").curves.keys()
    code, out, _ = cli("test", "-model", "net.prototxt", "-weights", files[5], "-iterations", 2)
    told = [json.loads(line) for line in Path("log.json").read_text().splitlines()]
    last = {one["name"]: one["value"] for one in [one for one in told if one["event"] == "test"][-1]["outputs"]}
    assert code == 0 and f"loss = {last['loss_ema']:g}" in out
    kept = [(root / name).read_bytes() for name in files]
    for name in files[3:6]:
        (root / name).unlink()
    code, _, err = cli(*TRAIN, *more, "--resume", "auto")
    assert code == 0 and "warning" not in err and [(root / name).read_bytes() for name in files] == kept


def test_later_settings_win_and_the_short_options_last(root: Path, cli: Cli) -> None:
    code, _, err = cli(*TRAIN, "--set", "max_iter=9", "--set", "max_iter=7", "-max_iter=1")
    assert (code, re.findall(r"Iteration (\d+) \(", err)) == (0, ["0"])


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        pytest.param("base_rl=1", 1, "'base_rl' is no field of SolverParameter; did you mean \"base_lr\"?", id="name"),
        pytest.param("base_lr", 2, "--set base_lr: expected FIELD=VALUE", id="no-value"),
        pytest.param("lr_policy=stepp", 1, "stepp", id="policy"),
        pytest.param("net=gone.prototxt", 1, "net 'gone.prototxt' does not exist", id="net"),
    ],
)
def test_bad_settings(setting: str, code: int, says: str, root: Path, cli: Cli) -> None:
    found, out, err = cli(*TRAIN, "--set", setting)
    assert (found, out) == (code, "")
    assert says in said(err)


def test_resume_auto(root: Path, cli: Cli) -> None:
    """Fresh, then finished; a longer run goes on where it was."""
    for iterations, restored in ((2, []), (4, ["2"]), (4, ["4"]), (6, ["4"])):
        code, _, err = cli(*TRAIN, "--resume", "auto", "--max-iter", iterations)
        assert code == 0
        assert re.findall(r"Restoring previous solver status from .*_iter_(\d+)\.", err) == restored
    assert (root / "s_iter_6.solverstate.h5").exists()


def test_weights_start_a_run_but_do_not_restart_it(root: Path, cli: Cli) -> None:
    """From the command line, with the solver's own behind them; what a snapshot tells is what was used."""
    for name in ("own", "given"):
        snapshot.write_model(root / f"{name}.h5", {"ip": {0: np.ones((3, 64), np.float32), 1: np.zeros(3)}})
    write_solver(root, 'weights: "own.h5" max_iter: 2 snapshot: 1 snapshot_prefix: "s"')
    for option, used in ((("--weights", "given.h5"), ["given"]), ((), ["own"])):
        for path in root.glob("s_iter_*"):
            path.unlink()
        code, _, err = cli(*TRAIN, *option, "--resume=auto")
        assert (code, re.findall(r"Finetuning from \S*?(\w+)\.h5", err)) == (0, used)
        assert [Path(name).stem for name in solver_of("s_iter_2.caffemodel.h5").weights] == used
        code, _, err = cli(*TRAIN, *option, "--resume=auto", "--max-iter", 3)
        assert (code, "Finetuning" in err, "Restoring" in err) == (0, False, True)
    (root / "own.h5").unlink()  # isn't even looked for
    assert cli(*TRAIN, "--snapshot", "s_iter_2.solverstate.h5")[0] == 0


def test_log_json_tells_ranks_and_plot_draws_them(root: Path, cli: Cli) -> None:
    tested = ("--set", "test_iter=1", "--set", "test_interval=2", "--set", "force_decay=0.1")
    assert cli(*TRAIN, "--log-json", "log", *tested)[0] == 0
    run = read_run(root / "log")
    assert run.curves["conv rank"].iterations == [0, 2, 4] and set(run.curves["conv rank"].values) <= {1, 2, 3, 4}
    assert {"train loss", "lr", "test accuracy", "conv cosine", "conv ratio"} <= set(run.curves)
    assert cli("plot", "log", "-o", "log.svg")[0] == 0 and "rank" in (root / "log.svg").read_text()


def test_log_json_of_a_run_and_its_resume(root: Path, cli: Cli) -> None:
    def kinds() -> list[str]:
        return [json.loads(line)["event"] for line in (root / "log").read_text().splitlines()]

    assert cli(*TRAIN, "--log-json", "log", "--max-iter", 2)[0] == 0
    first = kinds()
    assert (first[0], first[-1], first.count("train")) == ("start", "done", 2)
    assert cli(*TRAIN, "--log-json", "log", "--resume", "auto")[0] == 0
    assert kinds()[: len(first)] == first
    assert kinds()[len(first)] == "restore"
    assert cli(*TRAIN, "--log-json", "log", "--max-iter", 1)[0] == 0
    assert kinds().count("train") == 1
    code, _, err = cli(*TRAIN, "--log-json", "log", "--set", "base_lr=1e30", "--set", "snapshot=0")
    assert (code, kinds()[-1]) == (1, "error")
    assert json.loads((root / "log").read_text().splitlines()[-1])["text"] == said(err)
    code, _, err = cli(*TRAIN, "--log-json", "gone/log")
    assert (code, "--log-json: cannot write gone/log" in said(err)) == (1, True)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_amp(amp: str, root: Path, cli: Cli) -> None:
    code, _, err = cli(*TRAIN, "--amp", amp)
    assert code == 0
    assert "Mixed precision: Convolution, Deconvolution, InnerProduct compute in " in err
    assert (re.findall(r"Iteration (\d), loss scale = 65536, steps left out = 0", err) == list("0123")) == (
        amp == "fp16"
    )
    blobs = snapshot.read_model("s_iter_4.caffemodel.h5").layers["conv"]
    assert blobs[0].dtype == np.float32


def test_several_devices_are_handed_on(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(launch, "launch", lambda count, arguments, stop: calls.append((count, list(arguments))))
    assert cli(*TRAIN, "-gpu=0,1,2", "-max_iter", 3)[0] == 0
    ((count, arguments),) = calls
    assert count == 3
    assert arguments == ["train", "--solver", "solver.prototxt", "--gpu=0,1,2", "--max-iter", "3"]


def test_test_shows_debug_info_of_the_net(root: Path, cli: Cli) -> None:
    assert cli(*TRAIN)[0] == 0
    (root / "net.prototxt").write_text("debug_info: true " + (root / "net.prototxt").read_text())
    code, _, err = cli("test", "-model", "net.prototxt", "-weights", "s_iter_4.caffemodel.h5", "-iterations", 2)
    assert code == 0
    assert len(re.findall(r"\]     \[Forward\] Layer conv, top blob conv data: ", err)) == 2
    assert "[Backward]" not in err


def test_no_cuda_graph(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("forcereg.solver.build.recorder_for", asked.append)
    assert cli(*TRAIN, "--max-iter", 1, "--no-cuda-graph")[0] == 0 and not asked
    assert cli(*TRAIN, "--max-iter", 1)[0] == 0 and len(asked) == 1
