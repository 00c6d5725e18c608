"""Fuzzers and stress tests, tests of many rounds: few in the suite, their long forms with `pytest --long`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

Rounds = Callable[..., Iterator[random.Random]]
MINUTES = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("forcereg")
    group.addoption("--long", action="store_true", help="fuzzers and stress tests in their long forms")
    group.addoption(
        "--minutes", type=float, default=MINUTES, help="how long each fuzzer runs with --long (default: %(default)s)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a case like others, tried with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="like others; --long"))


@pytest.fixture
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def rounds(request: pytest.FixtureRequest, long_form: bool, record_property: Callable[[str, object], None]) -> Rounds:
    """`for chance in rounds(300)`: the chance of each round, which is the same in every run.

    With --long there are `long` rounds, or as many as fit in --minutes; the summary tells how many there were.
    """

    def rounds(count: int, long: int | None = None) -> Iterator[random.Random]:
        most = long if long_form else count
        end = time.monotonic() + 60 * request.config.getoption("--minutes")
        tried = 0
        while tried < most if most is not None else time.monotonic() < end:
            tried += 1
            yield random.Random(f"{request.node.name} {tried}")
        record_property("rounds", tried)

    return rounds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not terminalreporter.config.getoption("--long"):
        return
    for report in terminalreporter.stats.get("passed", []):
        if tried := dict(report.user_properties).get("rounds"):
            terminalreporter.line(f"{report.nodeid}: {tried:,} rounds")
