"""Where a run's curves may go: MLflow, Weights & Biases, and trackers of one's own; TensorBoard has its own tests."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forcereg import registry
from forcereg.errors import ForceregError, UsageError
from forcereg.solver.trackers import Tracker, opened
from forcereg.solver.trackers.base import check, scalars
from forcereg.system.events import Event
from tests.solver.nets import batches, regression

SETTINGS = 'max_iter: 4 display: 2 snapshot_prefix: "s" snapshot_after_train: false stepvalue: 9'


class Kept(Tracker):
    """Keeps what it is told."""

    def __init__(self, target: str, said: str) -> None:
        super().__init__(target, said)
        self.told: list[Any] = []

    def begin(self, settings: Mapping[str, Any]) -> None:
        self.told.append(dict(settings))

    def write(self, values: Mapping[str, float], iteration: int) -> None:
        if self.target == "broken":
            raise OSError("the service is\ngone")
        self.told.append((iteration, dict(values)))

    def end(self, how: str) -> None:
        self.told.append(how)

    def close(self) -> None:
        self.told.append("closed")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_known", "_about"):
        monkeypatch.setattr(registry.tracker, table, dict(getattr(registry.tracker, table)))
    registry.tracker("kept")(Kept)


def test_one_of_ones_own(kept: None, tmp_path: Path) -> None:
    with opened("kept:here:and:there") as tracker:
        solver, recorder = regression(tmp_path, SETTINGS)
        solver.observers.append(tracker)
        solver.solve(batches)
    assert isinstance(tracker, Kept) and tracker.target == "here:and:there"
    settings, *curves, how, closed = tracker.told
    assert (settings["net_name"], settings["base_lr"], settings["stepvalue"]) == ("regression", 0.1, [9])
    assert (how, closed) == ("finished", "closed")
    trained = recorder.of("train")
    assert [(at, values["train/loss"]) for at, values in curves] == [(one.iteration, one.loss) for one in trained]


def test_a_service_that_fails_ends_no_run(kept: None, tmp_path: Path) -> None:
    with opened("kept:broken") as tracker:
        solver, _ = regression(tmp_path, SETTINGS)
        solver.observers.append(tracker)
        with pytest.warns(
            UserWarning, match=r"--tracker kept:broken: OSError: the service is gone .*goes on without"
        ) as said:
            solver.solve(batches)
    assert len(said) == 1 and solver.iter == 4
    assert isinstance(tracker, Kept) and tracker.told[1:] == ["closed"]


def test_names() -> None:
    assert check("mlflow:sqlite:///a.db") == ("mlflow", "sqlite:///a.db") and check("wandb") == ("wandb", "")
    with pytest.raises(UsageError, match="--tracker is 'mlfow': unknown tracker 'mlfow'; did you mean \"mlflow\""):
        check("mlfow")
    with pytest.raises(UsageError, match="no folder is named"):
        opened("tensorboard")


PACKAGES = [
    ("mlflow", "mlflow"), ("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard:x", "torch.utils.tensorboard"),
]  # fmt: skip


class Refusing:
    """A finder that finds no such package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: Any) -> None:
        if f"{name}.".startswith(f"{self.package}."):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize(("name", "package"), PACKAGES)
def test_a_missing_package_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Refusing(package), *sys.meta_path])
    extra = name.partition(":")[0]
    wanted = "trackio" if extra == "trackio" else rf'"forcereg\[{extra}\]"'
    with pytest.raises(ForceregError, match=rf"--tracker {name} needs the {extra} package; .* pip install {wanted}$"):
        opened(name)


def test_most_events_have_no_numbers() -> None:
    for kind in ("note", "start", "done", "snapshot", "progress"):
        assert not list(scalars(Event(kind, {})))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its file store: settings are parameters, curves metrics; a run that goes on does so in the same one."""
    pytest.importorskip("mlflow", reason="needs the mlflow extra, which brings some forty packages")
    from mlflow.tracking import MlflowClient

    store = f"file://{tmp_path}/store"
    with pytest.raises(ForceregError, match=r"--tracker mlflow:.*MLFLOW_ALLOW_FILE_STORE"):
        opened(f"mlflow:{store}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    solver, recorder = regression(tmp_path, SETTINGS)
    with opened(f"mlflow:{store}") as tracker:
        solver.observers.append(tracker)
        solver.solve(batches)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("forcereg")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["base_lr"] == "0.1"
    found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert found == [(event.iteration, event.loss) for event in recorder.of("train")]
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with opened(f"mlflow:{store}") as tracker:
        tracker(Event("start", {"net": "other", "settings": {"base_lr": 0.5, "gamma": 0.1}}))
        tracker(Event("best", {"iteration": 9, "output": "top-5 (%)", "value": 0.5}))
        tracker(Event("stopped"))
    run = client.get_run(run.info.run_id)
    assert run.info.status == "KILLED" and run.data.params["base_lr"] == "0.1" and run.data.params["gamma"] == "0.1"
    assert run.data.metrics["best/top-5 ___"] == 0.5


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: a folder that can be sent later."""
    pytest.importorskip("wandb", reason="needs the wandb extra, which brings its own server of 60 MB")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    with opened("wandb:tests") as tracker:
        tracker(Event("start", {"net": "n", "settings": {"base_lr": 0.1, "stepvalue": [1, 2]}}))
        for iteration in (5, 10, 5):
            tracker(Event("train", {"iteration": iteration, "loss": 1.0, "rate": 0.1, "outputs": []}))
        assert tracker.run.config["base_lr"] == 0.1 and tracker.run.summary["iteration"] == 5  # type: ignore[attr-defined]
        tracker(Event("done"))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # its server writes a moment later
    while b"stepvalue" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"train/loss" in file.read_bytes() and b"stepvalue" in file.read_bytes()


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in a folder."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="needs trackio, which brings a web server")
    with opened("trackio:tests") as tracker:
        tracker(Event("start", {"net": "n", "settings": {"base_lr": 0.1}}))
        tracker(Event("train", {"iteration": 5, "loss": 1.0, "rate": 0.1, "outputs": []}))
        tracker(Event("done"))
    rows = sqlite3.connect(tmp_path / "tests.db").execute("select metrics from metrics").fetchall()
    assert any(b"train/loss" in bytes(row[0]) for row in rows)
