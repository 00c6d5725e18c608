"""Telling an observer how work goes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator

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


def test_items_are_steps() -> None:
    seen: list[Event] = []
    assert list(Tell(seen.append).track("ab", "reading", None)) == ["a", "b"]
    assert [(event.task, event.done, event.most) for event in seen] == [("reading", i, None) for i in range(3)]


def test_an_item_is_gone_before_the_next_is_made() -> None:
    """There may be memory for one picture only."""
    alive: list[weakref.ref[set[int]]] = []

    def items() -> Iterator[set[int]]:
        for number in range(3):
            assert not alive or alive[-1]() is None
            item = {number}
            alive.append(weakref.ref(item))
            yield item
            del item

    for item in Tell([].append).track(items(), "writing", 3):
        del item
    assert len(alive) == 3


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
