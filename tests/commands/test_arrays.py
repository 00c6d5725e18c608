"""Models as .safetensors and .npz through commands: what takes weights takes them, and convert makes them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg.snapshot import read_model, write_model
from forcereg.workflows.convert import convert
from tests.conftest import RunCli
from tests.scratch import prepare
from tests.snapshot.test_content import same
from tests.snapshot.test_flat import SHARED

SNAPSHOT = "net_iter_20.caffemodel.h5"
FORMS = ("m.safetensors", "m.npz")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, before = tmp_path_factory.mktemp("arrays"), os.getcwd()
    os.chdir(folder)
    try:
        prepare(folder)
        for name in FORMS:
            convert(SNAPSHOT, name)
    finally:
        os.chdir(before)
    return folder


def held(path: Path) -> dict[str, Any]:
    return {name: blobs for name, blobs in read_model(path).layers.items() if blobs}


@pytest.mark.parametrize(
    "line",
    [
        "test --model net.prototxt --weights M --iterations 2",
        "train --solver solver.prototxt --weights M --max-iter 2",
        "finetune --solver solver.prototxt --model net.prototxt --weights M --max-iter 2",
        "decompose --snapshot M --ranks 4,6 --out low",
        "ranks M --error 0.1",
        "deploy M -o use.prototxt",
        "filters M --layer conv1 -o f.csv",
    ],
    ids=lambda line: line.split()[0],
)
def test_it_takes_them_as_it_takes_hdf5(line: str, made: Path, tmp_path: Path, run_cli: RunCli) -> None:
    told = []
    for name in (SNAPSHOT, *FORMS):
        folder = shutil.copytree(made, tmp_path / name)
        (folder / name).rename(folder / SNAPSHOT)  # by its content, not by its name
        done = run_cli(*line.replace("M", SNAPSHOT).split(), cwd=folder)
        weights = {path.name: held(path) for path in folder.glob("*.caffemodel.h5")}
        assert done.returncode == 0, done.stderr
        told.append(
            (re.sub(r"(?m)^I[^\]]*\] ", "", done.stdout), {path.name for path in folder.iterdir()} - {*FORMS}, weights)
        )
    for other in told[1:]:
        assert other[:2] == told[0][:2] and same(other[2], told[0][2])


def test_convert_there_and_back(made: Path, tmp_path: Path, run_cli: RunCli) -> None:
    first = read_model(made / SNAPSHOT)
    for name in FORMS:
        done = run_cli("convert", made / name, tmp_path / "back.caffemodel.h5")
        assert done.stdout == f"wrote {tmp_path / 'back.caffemodel.h5'}: a model in HDF5, 6 blobs of 2,019 values\n"
        done = run_cli("convert", tmp_path / "back.caffemodel.h5", tmp_path / name)
        assert done.stdout.endswith(f": a model in {Path(name).suffix[1:]}, 6 blobs of 2,019 values\n")
        assert read_model(tmp_path / name).attrs == first.attrs
        back = read_model(tmp_path / "back.caffemodel.h5")
        assert same(back.layers, first.layers) and back.attrs == first.attrs
        convert(made / name, tmp_path / "back.caffemodel")
        convert(tmp_path / "back.caffemodel", tmp_path / name)
        assert same(held(tmp_path / name), held(made / SNAPSHOT))


def test_shared_blobs_and_diffs(tmp_path: Path) -> None:
    blobs = {0: np.ones((4, 3), np.float32), 1: np.zeros(4, np.float32)}
    write_model(tmp_path / "a.h5", {"p": blobs, "q": {}}, {"p": blobs}, {"forcereg_net": SHARED})
    done = convert(tmp_path / "a.h5", tmp_path / "a.npz")
    assert done.remarks == ("npz has no place for diffs, which are left out",)
    convert(tmp_path / "a.npz", tmp_path / "a.caffemodel")
    assert same(read_model(tmp_path / "a.caffemodel").layers["q"], blobs)
    convert(tmp_path / "a.caffemodel", tmp_path / "b.safetensors")
    assert same(read_model(tmp_path / "b.safetensors").layers, {"p": blobs})


def test_a_state_has_no_such_form(made: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("convert", made / "net_iter_20.solverstate.h5", tmp_path / "s.npz")
    assert done.returncode == 2 and "is a solver state; give a name that ends as one" in done.stderr
