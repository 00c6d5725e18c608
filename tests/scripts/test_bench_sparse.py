"""scripts/bench/pruned.py prunes to its shares, sparse.py tells what it measured; times are not judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from bench import pruned
from bench import sparse as bench
from paper import made_data

from forcereg.net.load import shape_net
from forcereg.snapshot import write_model


def test_the_layers_are_alexnets() -> None:
    net = shape_net(pruned.NET, "TRAIN", 0, (), input_shapes={"small": (1, 3, 32, 32), "label": (1,)})
    shapes = {name: tuple(blobs[0].shape) for name, blobs in net.params.items() if name.startswith("conv")}
    assert shapes == {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
    }
    assert net.shapes["data"] == (1, 3, 67, 67)
    assert set(bench.LAYERS) == set(pruned.PRUNED)


def test_filters_are_pruned_to_the_share_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_data.cifar10(tmp_path)
    for module in ("forcereg.study.sparse", "forcereg.study.prune.limits"):
        monkeypatch.setattr(f"{module}.SECONDS", 0.0)
    monkeypatch.setattr(pruned, "SHARES", (0.3,))
    monkeypatch.setattr(sys, "argv", ["pruned.py", str(tmp_path), "--scale", "0.0001"])
    pruned.main()
    assert capsys.readouterr().out.startswith("30% of the weights left: accuracy ")
    for name, weight in pruned.load_filters(tmp_path, 0.3).items():
        left = weight.numel() if name == "conv1" else round(0.3 * weight.numel())
        assert int(weight.count_nonzero()) == pytest.approx(left, abs=1)
    pruned.main()
    assert capsys.readouterr().out == ""


def test_what_it_measures_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba")
    weight = torch.randn(8, 4, 3, 3) * (torch.rand(8, 4, 3, 3) < 0.3)
    filters = {name: {0: weight.numpy()} for name in ("conv1", *pruned.PRUNED)}
    (tmp_path / "left_30").mkdir()
    write_model(tmp_path / "left_30" / "net_pruned.caffemodel.h5", filters)
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
    with pytest.raises(
        SystemExit, match=r"left_20/net_pruned\.caffemodel\.h5: not there; train it by python scripts/bench/pruned\.py"
    ):
        bench.main()
