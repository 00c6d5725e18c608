"""The calls that look at, score, time and copy: what they tell an observer, and what else than text they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import forcereg
from forcereg.data.budget import DECODING, MIB
from forcereg.errors import ForceregError, UsageError
from forcereg.schema.rules import stage_names
from tests.solver.nets import Recorder, write_images, write_solver


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images net and a model of it in the working directory."""
    monkeypatch.chdir(write_images(tmp_path))
    forcereg.Solver(write_solver(tmp_path, 'max_iter: 1 snapshot_prefix: "s"')).solve()
    return tmp_path


def test_scoring_tells_every_batch(here: Path) -> None:
    recorder = Recorder()
    told = forcereg.score(Path("net.prototxt"), "s_iter_1.caffemodel.h5", iterations=2, device="cpu", observer=recorder)
    batches = recorder.of("batch")
    assert [batch.index for batch in batches] == [0, 1]
    assert [output.name for output in batches[0].outputs] == ["accuracy", "loss"]
    assert told.mean("accuracy") == pytest.approx(sum(batch.outputs[0].value for batch in batches) / 2)
    quiet = forcereg.score("net.prototxt", Path("s_iter_1.caffemodel.h5"), iterations=2, device="cpu")
    assert quiet.outputs == told.outputs


def test_batches_that_do_not_cover_the_data_are_a_warning(here: Path) -> None:
    with pytest.warns(UserWarning, match="3 batches of 5 go round the 10 records 1.5 times"):
        forcereg.score("net.prototxt", "s_iter_1.caffemodel.h5", iterations=3, device="cpu")


def test_timing_tells_when_it_begins_and_each_pass(here: Path) -> None:
    events: list[forcereg.Event] = []
    forcereg.time("net.prototxt", iterations=2, device="cpu", observer=events.append)
    assert [(event.kind, event.task, event.done, event.most) for event in events] == [
        ("progress", "forward-backward", done, 2) for done in range(3)
    ]


@pytest.mark.parametrize("given", ["a,b", ("a", "b"), ["a", "", "b"]], ids=["text", "tuple", "list"])
def test_stages(given: Any) -> None:
    assert stage_names(given) == ("a", "b") and stage_names("") == ()


def test_a_pattern_alone_is_no_letters(tmp_path: Path) -> None:
    assert len(forcereg.copy_configs(tmp_path, "examples/mnist")) == 5


def test_what_new_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no starter is called 'lennet'; did you mean"):
        forcereg.new("lennet", tmp_path)
    recorder = Recorder()
    made = forcereg.new("resnet", tmp_path, n=1, observer=recorder)
    assert [event.text for event in recorder.of("note")] == [f"wrote {path}" for path in made.files]
    made.solver.write_text("base_lr: 1\n")
    with pytest.raises(ForceregError, match="exists and differs"):
        forcereg.new("resnet", str(tmp_path), n=1)


def test_pictures_that_cannot_be_read_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 3)).save("a.png")
    Path("list.txt").write_text("a.png 0\ngone.png 1\n")
    with pytest.warns(UserWarning, match="gone.png: cannot be read"):
        made = forcereg.convert_imageset("list.txt", "db", gray=True)
    assert (made.records, made.shape, made.skipped) == (1, (1, 3, 4), 1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert forcereg.devices() == forcereg.devices(0) == forcereg.devices([0, 1]) == []


def test_the_budget_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODING, "limit", 1)
    forcereg.decode_budget(3)
    assert DECODING.limit == 3 * MIB
    with pytest.raises(UsageError, match="expected 1 or more"):
        forcereg.decode_budget(0)


def test_a_net_for_use_is_not_written_over_what_was_read(here: Path) -> None:
    made = forcereg.deploy("net.prototxt", weights="s_iter_1.caffemodel.h5")
    assert made.inputs == {"data": (1, 1, 6, 6)}
    assert made.write() == {"model": "net_deploy.prototxt", "weights": "net_deploy.caffemodel.h5"}
    with pytest.raises(UsageError, match="is what was read"):
        made.write("net")
