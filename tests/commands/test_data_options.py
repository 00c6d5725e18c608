"""--data-budget and --workers of train and test reach every data layer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from forcereg.data import prefetch
from forcereg.data.database import DatabaseFeed
from forcereg.data.feed import FeedContext
from forcereg.solver.loop import Solver
from tests.commands.conftest import Cli, said
from tests.solver.nets import write_images, write_solver


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[FeedContext]:
    """What data layers are built in, one after the other."""
    seen: list[FeedContext] = []
    original = DatabaseFeed.__init__

    def record(self: DatabaseFeed, spec, ctx: FeedContext, *args) -> None:
        seen.append(ctx)
        original(self, spec, ctx, *args)

    monkeypatch.setattr(DatabaseFeed, "__init__", record)
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--workers", 3, "--data-budget", 5], (5 << 20, 3)), ([], (2 << 30, 0))],
    ids=["given", "defaults"],
)
def test_options_reach_the_data_layers(
    options: list, expected: tuple[int, int], cli: Cli, contexts: list[FeedContext], tmp_path: Path
) -> None:
    write_images(tmp_path)
    solver = write_solver(tmp_path, 'max_iter: 2 test_iter: 2 test_interval: 2 snapshot_prefix: "s"')
    assert cli("train", "--solver", solver, "--device", "cpu", *options)[0] == 0
    weights = tmp_path / "s_iter_2.caffemodel.h5"
    code, *_ = cli("test", "--model", tmp_path / "net.prototxt", "--weights", weights, "--device", "cpu", *options)
    assert code == 0
    assert [(ctx.budget, ctx.workers) for ctx in contexts] == [expected] * 3


@pytest.mark.parametrize("option", ["--workers", "--data-budget"])
def test_a_negative_number_is_refused(option: str, cli: Cli) -> None:
    code, _, err = cli("train", "--solver", "s", option, -1)
    assert code == 2 and option in said(err)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_solver_streams_with_that_many_workers(workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_images(tmp_path)
    started = []
    original = prefetch._work
    monkeypatch.setattr(prefetch, "_work", lambda *args: started.append(threading.get_ident()) or original(*args))
    solver = Solver(write_solver(tmp_path, 'max_iter: 3 snapshot_prefix: "s"'), device="cpu", budget=0, workers=workers)
    solver.step(3)
    assert len(started) == workers
