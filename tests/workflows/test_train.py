"""forcereg.train and forcereg.finetune: what their commands come to, told to an observer alone."""

from __future__ import annotations

import inspect
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.errors import ForceregError, UsageError
from forcereg.solver.jsonlog import JsonLog
from forcereg.system.events import Event
from forcereg.workflows.finetune import finetune
from forcereg.workflows.train import train
from tests.commands.conftest import Cli
from tests.solver.nets import Recorder, write_images, write_solver

SCHEDULE = (
    'max_iter: 6 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 3 display: 2 '
    "force_decay: 0.01"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With solver.prototxt over a net of images; the working directory."""
    monkeypatch.chdir(write_images(tmp_path))
    write_solver(tmp_path, SCHEDULE)
    return tmp_path


def weights(path: str | Path) -> dict[str, np.ndarray]:
    return {f"{n}/{i}": blob for n, blobs in snapshot.read_model(path).layers.items() for i, blob in blobs.items()}


def assert_equal(one: str | Path, other: str | Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_train_is_the_command(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    solver = train(Path("solver.prototxt"), set={"base_lr": 0.05, "snapshot_prefix": "own"}, seed=3, observer=recorder)
    assert capsys.readouterr() == ("", "")
    assert (solver.iter, solver.last_snapshot) == (6, folder / "own_iter_6.caffemodel.h5")
    assert [event.kind for event in recorder.events][:2] == ["start", "test_start"]
    assert recorder.story()[-1] == "done" and [e.iteration for e in recorder.of("test")] == [0, 3, 6]
    code, _, err = cli("train", "--solver", "solver.prototxt", "--set", "base_lr=0.05", "--seed", "3")
    assert code == 0, err
    assert_equal("own_iter_6.caffemodel.h5", "net_iter_6.caffemodel.h5")


def test_text_without_an_observer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("solver.prototxt").read_text()
    assert train(text, max_iter=2, set=["snapshot_after_train=false"]).iter == 2
    assert capsys.readouterr() == ("", "")


def test_where_it_starts(folder: Path) -> None:
    train("solver.prototxt", max_iter=4, set={"snapshot_prefix": "half"})
    train("solver.prototxt")
    for more in ({"snapshot": "half_iter_4.solverstate.h5"}, {"resume": True}):
        recorder = Recorder()
        train("solver.prototxt", set={"snapshot_prefix": "half"}, observer=recorder, **more)  # type: ignore[arg-type]
        assert len(recorder.of("restore")) == 1
        assert_equal("half_iter_6.caffemodel.h5", "net_iter_6.caffemodel.h5")
        Path("half_iter_6.caffemodel.h5").unlink()
        Path("half_iter_6.solverstate.h5").unlink()
    recorder = Recorder()
    solver = train("solver.prototxt", weights=Path("net_iter_6.caffemodel.h5"), max_iter=0, observer=recorder)
    assert [event.file for event in recorder.of("weights")] == ["net_iter_6.caffemodel.h5"]
    assert list(solver.param.weights) == ["net_iter_6.caffemodel.h5"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        pytest.param({"snapshot": "a", "weights": "b"}, "snapshot and weights are both given; a sna", id="weights"),
        pytest.param({"snapshot": "a", "resume": True}, "snapshot and resume are both given; both say", id="resume"),
        pytest.param({"clip_until": 3}, "clip_until is about rank_clipping, which isn't given", id="clip-until"),
        pytest.param({"rank_clipping": 1.5}, "rank_clipping is 1.5; expected a share", id="share"),
        pytest.param({"sigint_effect": "die"}, "sigint_effect is 'die'; expected stop, snapshot, none", id="effect"),
        pytest.param({"amp": "fp8"}, "amp is 'fp8'; expected bf16, fp16 or None", id="amp"),
    ],
)
def test_keywords_that_do_not_go(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train("solver.prototxt", **more)


class Context(Recorder):
    """An observer that is opened."""

    state = "new"

    def __enter__(self) -> Context:
        self.state = "open"
        return self

    def __exit__(self, *_: object) -> None:
        self.state = "closed"

    def __call__(self, event: Event) -> None:
        assert self.state == "open"
        super().__call__(event)


def test_an_observer_that_is_opened(folder: Path) -> None:
    context = Context()
    with pytest.raises(ForceregError, match="not finite"):
        train("solver.prototxt", set={"base_lr": 1e30}, observer=context)
    assert context.state == "closed" and context.events[-1].kind == "error"
    untouched = Context()
    with pytest.raises(ForceregError, match="gone"):
        train("gone", observer=untouched)
    assert untouched.state == "new"


def test_signals_only_if_asked(folder: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    seen = []

    def interrupt(event: Event) -> None:
        if event.kind == "progress" and event.iteration == 2:
            seen.append(signal.getsignal(signal.SIGINT))
            if seen[-1] not in before:
                signal.raise_signal(signal.SIGINT)

    solver = train("solver.prototxt", observer=interrupt, sigint_effect="stop")
    assert (solver.iter, solver.stop_requested) == (2, True) and Path("net_iter_2.caffemodel.h5").exists()
    assert train("solver.prototxt", observer=interrupt).iter == 6
    assert seen[1] == before[0]
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


# -- finetune


def test_finetune_is_the_command(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    train("solver.prototxt")
    assert cli("decompose", "--snapshot", "net_iter_6.caffemodel.h5", "--ranks", "2")[0] == 0
    cut = {"model": "net_iter_6_lowrank.prototxt", "weights": "net_iter_6_lowrank.caffemodel.h5"}
    recorder = Recorder()
    solver = finetune("solver.prototxt", **cut, observer=recorder)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
    assert solver.last_snapshot == folder / "net_finetuned_iter_6.caffemodel.h5"
    (note,) = recorder.of("note")
    assert note.text.startswith("No force on conv_lowrank, conv_linear") and solver.param.force_decay == 0
    args = [text for name, value in cut.items() for text in (f"--{name}", value)]
    code, _, err = cli("finetune", "--solver", "solver.prototxt", *args, "--set", "snapshot_prefix=own")
    assert code == 0, err
    assert_equal("own_iter_6.caffemodel.h5", "net_finetuned_iter_6.caffemodel.h5")


def test_what_finetune_needs(folder: Path) -> None:
    with pytest.raises(UsageError, match="weights is missing: the model that decompose wrote"):
        finetune("solver.prototxt", model="net.prototxt")


def test_keywords_of_both_are_alike() -> None:
    known = inspect.signature(train).parameters
    assert known == {
        name: one for name, one in inspect.signature(finetune).parameters.items()
        if name not in ("model", "test_model", "keep_force")
    }  # fmt: skip


def test_records_of_a_run(folder: Path, cli: Cli) -> None:
    """The log that --log-json writes is an observer for Python, too."""
    train("solver.prototxt", max_iter=2, measure_force=True, observer=JsonLog("own.json"))
    assert cli("train", "--solver", "solver.prototxt", "--max-iter", "2", "--log-json", "theirs.json")[0] == 0
    own, theirs = (
        [json.loads(line) for line in Path(f"{name}.json").read_text().splitlines()] for name in ("own", "theirs")
    )
    assert [one["event"] for one in own] == [one["event"] for one in theirs]
    assert [one["loss"] for one in own if "loss" in one] == [one["loss"] for one in theirs if "loss" in one]
