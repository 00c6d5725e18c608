"""Telling an observer how work goes."""

from __future__ import annotations

import warnings

import pytest

from forcereg.system.events import Event, Tell


def test_an_observer_gets_every_event() -> None:
    seen: list[Event] = []
    tell = Tell(seen.append)
    tell.progress("net", 2, 10, "accuracy 0.9")
    tell.note("measuring 3 nets")
    tell.warn("the net has no test data")
    assert [(event.kind, dict(event.fields)) for event in seen] == [
        ("progress", {"task": "net", "done": 2, "most": 10, "text": "accuracy 0.9"}),
        ("note", {"text": "measuring 3 nets"}),
        ("warning", {"text": "the net has no test data"}),
    ]


def test_steps_are_counted() -> None:
    seen: list[Event] = []
    step = Tell(seen.append).steps("layer", 2)
    step("conv1")
    step("conv2")
    assert [(event.done, event.most, event.text) for event in seen] == [(0, 2, ""), (1, 2, "conv1"), (2, 2, "conv2")]


def test_without_one_only_warnings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Tell()
    with pytest.warns(UserWarning, match="no test data") as found:
        tell.progress("net", 1, 2)
        tell.note("unheard")
        tell.warn("no test data")
    assert len(found) == 1 and found[0].filename == __file__
    assert capsys.readouterr() == ("", "")


def test_an_observer_takes_warnings_in_place_of_python() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tell([].append).warn("told")
