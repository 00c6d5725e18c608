"""`forcereg train --rank-clipping`: from a dense net to one with the ranks that training left it, alone and by two."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.net.load import load_net
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.solver.clipping_nets import write_chains
from tests.solver.nets import write_images, write_solver

TRAIN = ("train", "--solver", "solver.prototxt")
CLIP = ("--rank-clipping", "0.7")
EXTRA = (
    "max_iter: 8 display: 4 test_iter: 1 test_interval: 2 base_lr: 0.02 momentum: 0.9 weight_decay: 0.001 "
    'snapshot: 5 snapshot_prefix: "s"'
)
RANK = re.compile(r"\] Iteration (\d+), rank of (\S+) = (\d+)")


def ranks(err: str) -> list[tuple[int, str, int]]:
    return [(int(at), name, int(rank)) for at, name, rank in RANK.findall(err)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_chains(tmp_path)
    write_solver(tmp_path, EXTRA)
    return tmp_path


def test_from_dense_to_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Train, decompose at full rank, train with clipping, and go on with what remains."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    write_solver(tmp_path, EXTRA)
    assert cli(*TRAIN)[0] == 0
    code, _, err = cli(
        "decompose",
        "--snapshot",
        "s_iter_8.caffemodel.h5",
        "--fc",
        "--error",
        "0",
        "--even-if-dearer",
        "--out",
        "whole",
    )
    assert code == 0, err
    write_solver(tmp_path, EXTRA, net='net: "whole.prototxt"')
    weights = ("--weights", "whole.caffemodel.h5")
    code, _, err = cli(*TRAIN, *weights, *CLIP, "--clip-until", "5", "--set", "snapshot_prefix=c")
    assert code == 0, err
    looks = ranks(err)
    assert [at for at, name, _ in looks if name == "conv"] == [0, 2, 4, 6, 8]
    at_end = {name: rank for _, name, rank in looks}
    assert at_end.keys() == {"conv", "ip"} and at_end["conv"] < 4
    text = ", ".join(f"{name} {rank} of {full}" for (name, rank), full in zip(at_end.items(), (4, 3), strict=True))
    assert f"] Ranks at the end: {text}; the net with these ranks is {tmp_path / 'c_clipped.prototxt'}\n" in err
    write_solver(tmp_path, EXTRA, net='net: "c_clipped.prototxt"')
    code, _, err = cli(*TRAIN, "--weights", "c_iter_8.caffemodel.h5")
    assert code == 0 and "rank of" not in err
    assert cli("deploy", "c_iter_8.caffemodel.h5", "-o", "use.prototxt")[0] == 0
    params = load_net("use.prototxt", "use.caffemodel.h5").params
    assert len(params["conv_lowrank"][0]) == params["conv_linear"][0].shape[1] == at_end["conv"]


def test_resume_auto_is_as_if_nothing_had_happened(root: Path, cli: Cli) -> None:
    code, _, whole = cli(*TRAIN, *CLIP, "--resume", "auto")
    assert code == 0
    expected = snapshot.read_model("s_iter_8.caffemodel.h5").layers
    for path in root.glob("s_iter_8*"):
        path.unlink()
    code, _, resumed = cli(*TRAIN, *CLIP, "--resume", "auto")
    assert code == 0 and "Restoring previous solver status from" in resumed
    assert ranks(resumed) == [look for look in ranks(whole) if look[0] > 5]
    found = snapshot.read_model("s_iter_8.caffemodel.h5").layers
    assert all(np.array_equal(blob, found[name][index]) for name in found for index, blob in expected[name].items())
    code, _, err = cli(*TRAIN, "--resume", "auto")
    assert code == 1 and said(err).endswith("; it was saved with --rank-clipping: give that again")


@pytest.mark.long
def test_two_processes(root: Path, run_cli: RunCli) -> None:
    """Both hold the same weights, which every snapshot checks; going on in the middle changes nothing."""
    models = []
    for resume in (False, True):
        more = ("--resume", "auto") if resume else ()
        done = run_cli(*TRAIN, *CLIP, "--nproc", "2", *more, cwd=root, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        looks = {name: rank for _, name, rank in ranks(done.stderr)}
        assert looks["conv"] < 6 and looks["fc"] < 7
        assert ("Restoring" in done.stderr) == resume
        models.append(snapshot.read_model(root / "s_iter_8.caffemodel.h5").layers)
        for path in root.glob("s_iter_8*"):
            path.unlink()
    for name, blobs in models[0].items():
        for index, blob in blobs.items():
            assert np.allclose(blob, models[1][name][index], atol=1e-6), name


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("--clip-until", "5"), 2, "--clip-until is about --rank-clipping, which isn't given", id="until"),
        pytest.param(("--rank-clipping", "0"), 2, "0<x<=1", id="zero"),
        pytest.param(("--rank-clipping", "1.5"), 2, "0<x<=1", id="more"),
        pytest.param(
            (*CLIP, "--set", "net=dense.prototxt"), 1, "decompose --snapshot S --error 0 --even-if-dearer", id="dense"
        ),
    ],
)
def test_errors(arguments: tuple[str, ...], code: int, says: str, root: Path, cli: Cli) -> None:
    dense = (root / "net.prototxt").read_text().replace("_lowrank", "_a").replace("_linear", "_b")
    (root / "dense.prototxt").write_text(dense)
    found, out, err = cli(*TRAIN, *arguments)
    assert (found, out) == (code, "")
    assert says in said(err)
