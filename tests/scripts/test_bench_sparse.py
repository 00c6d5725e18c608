"""scripts/bench/pruned.py prunes to its shares at their times, sparse.py tells what it measured; no time is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from bench import pruned
from bench import sparse as bench


def test_the_schedule_reaches_each_share_and_rests_there() -> None:
    times = [at / 1000 for at in range(1001)]
    kept = [round(pruned.kept(at), 9) for at in times]
    assert kept[0] == kept[399] == 1 and kept == sorted(kept, reverse=True) and kept[-1] == pruned.SHARES[-1]
    passed = [pruned.passed(at) for at in times]
    assert passed[0] == 0 and passed[-1] == len(pruned.SHARES) and passed == sorted(passed)
    for at, done in enumerate(passed[1:], 1):
        if done > passed[at - 1]:  # saved when it has rested, at just that share
            assert kept[at - 70] == kept[at - 1] == pruned.SHARES[done - 1]


@pytest.mark.parametrize("share", [1.0, 0.3, 0.09])
def test_pruning_leaves_the_largest(share: float) -> None:
    weight = torch.randperm(200, generator=torch.Generator().manual_seed(0)).float() + 1
    weight[::2] *= -1
    before = weight.clone()
    pruned.prune(weight, share)
    left = weight != 0
    assert int(left.sum()) == round(200 * share) and torch.equal(weight[left], before[left])
    assert share == 1 or before[left].abs().min() > before[~left].abs().max()


def test_the_layers_are_alexnets() -> None:
    shapes = {name: tuple(weight.shape) for name, weight in pruned.filters(pruned.alexnet()).items()}
    assert shapes == {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
    }
    assert set(bench.LAYERS) == set(pruned.PRUNED)


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted by steps here: 2 of each 10 seconds."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), generator=draw, dtype=torch.uint8).numpy()
    monkeypatch.setattr(pruned, "read_cifar10", lambda path: [(images, torch.arange(8).numpy() % 2)] * 2)
    monkeypatch.setattr(pruned, "BATCH", 2)
    training = pruned.Training(tmp_path, Path("data"), 1 / 60, 0)
    training._spent = 0.9
    training._step(0.1, pruned.kept(0.9))
    training._save()
    other = pruned.Training(tmp_path, Path("data"), 1 / 60, 1)
    other._resume()
    assert other._spent == 0.9
    for one, two in zip(training._net.state_dict().values(), other._net.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    other.run()
    for share in pruned.SHARES:
        found = pruned.load_filters(tmp_path, share)
        assert (found["conv3"] != 0).float().mean() == pytest.approx(pruned.kept(0.95), abs=0.05)
        assert found["conv1"].count_nonzero() == found["conv1"].numel()


def test_what_it_measures_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba")
    weight = torch.randn(8, 4, 3, 3) * (torch.rand(8, 4, 3, 3) < 0.3)
    pruned.save(tmp_path / "filters_30.pt", {"filters": {"conv4": weight}, "accuracy": 0.5})
    monkeypatch.setitem(bench.LAYERS, "conv4", bench.Layer(5, 1, 2))
    args = ["sparse.py", str(tmp_path / "out.csv"), str(tmp_path), "--only", "conv4"]
    more = ["--shares", "0.3", "--batch", "1,2", "--seconds", "0.01", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*args, *more])
    bench.main()
    assert [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()] == [
        [" conv4 ", " 0.3 ", " 1 "], [" conv4 ", " 0.3 ", " 2 "],
    ]  # fmt: skip
    rows = bench.read_rows(tmp_path / "out.csv")
    assert len(rows) == 2 and all(min(row.dense, row.ccnmm, row.csr, row.direct) > 0 for row in rows)
    # nothing is measured twice
    bench.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["sparse.py", str(tmp_path / "out.csv"), "--table"])
    bench.main()
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| | not 0 | batch | dense ms | ccnmm | csr | direct |" and "threads: 1" in table[-1]
    monkeypatch.setattr(sys, "argv", [*args, "--shares", "0.2"])
    with pytest.raises(SystemExit, match=r"filters_20\.pt: not there; train them by python scripts/bench/pruned\.py"):
        bench.main()
