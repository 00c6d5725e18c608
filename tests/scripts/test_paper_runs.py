"""scripts/paper/*.sh: all of them run on made data, what they leave is valid, and run again they train nothing."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from forcereg.system.claims import held
from tests.conftest import TOP
from tests.nursery import Door

PAPER = TOP / "scripts" / "paper"
FORCEREG = Path(sys.executable).with_name("forcereg")
NETS = {
    "lenet/paper": ("lenet", 2),
    "convnet": ("convnet", 3),
    "resnet20/resnet20": ("resnet20", 21),
    "alexnet": ("alexnet", 5),
    "googlenet": ("googlenet", 57 + 2),
}
"""Folder of a net's results -> its name, and how many layers can be cut; GoogLeNet's auxiliary classifiers have two."""
SPARSE = {"ssl_lenet": 4, "ssl_convnet": 4, "ssl_resnet": 22, "ssl_alexnet": 8}
"""Folder of a sparse net's results -> how many layers have a weight matrix."""


def run(script: str, *args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", PAPER / f"{script}.sh", *args],
        cwd=cwd,
        env=os.environ | {"FORCEREG": str(FORCEREG), "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=2400,
    )


def forked(script: str, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """On made data, by programs that needn't load torch."""
    with Door("torch", "h5py") as door:
        return run(script, *args, cwd=cwd, SMOKE="1", FORCEREG=str(door.folder / "forcereg"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all scripts leave, on made data: minutes of work, done once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    # xdist gives each process a folder of its own in a common one
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "paper"
    folder.mkdir(exist_ok=True)
    with held(folder / "lock"):
        told = folder / "told"
        if not told.exists():
            done = forked("all", "out", cwd=folder)
            told.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}")
    code, *lines = told.read_text().splitlines()
    assert code == "0" and sorted(lines) == [f"{name}: done" for name in sorted(scripts())], lines
    return folder / "out"


def scripts() -> list[str]:
    known = {net.split("/")[0] for net in NETS} | {*SPARSE, "gsl_alexnet", "terngrad_lenet"}
    return [path.stem for path in PAPER.glob("*.sh") if path.stem in known]


def rows(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("folder", NETS)
def test_every_net_has_a_table_of_all_its_phases(folder: str, smoke: Path) -> None:
    name, layers = NETS[folder]
    found = rows(smoke / folder / f"{name}.csv")
    assert [(row["force_decay"], row["force_type"]) for row in found] == [
        ("0", ""),
        ("1e-3", "Constant"),
        ("1e-3", "Degradation"),
    ]
    for row in found:
        assert all(0 <= float(row[score]) <= 1 for score in ("accuracy", "accuracy_cut", "accuracy_tuned"))
        assert 0 < int(row["macs_cut"]) <= int(row["macs"])
        needed, full = (list(map(int, row[ranks].split("/"))) for ranks in ("ranks_at_error", "full_ranks"))
        assert len(needed) == len(row["ranks"].split("/")) == layers
        assert all(0 < rank <= most for rank, most in zip(needed, full, strict=True))
    shown = (smoke / folder / f"{name}.txt").read_text()
    assert all(f"{float(row['accuracy_tuned']):.2%}" in shown for row in found)
    assert "1e-3 Degradation" in shown


@pytest.mark.parametrize("name", SPARSE)
def test_every_sparse_net_has_a_table_of_all_its_phases(name: str, smoke: Path) -> None:
    found = rows(smoke / name / f"{name}.csv")
    assert [row["phase"] for row in found] == [p for p in ("baseline", "ssl", "finetune") for _ in range(SPARSE[name])]
    for row in found:
        assert all(0 <= float(row[share]) <= 1 for share in ("accuracy", "elements", "rows", "columns"))
        assert int(row["macs"]) > 0 and int(row["params"]) > 0
    shown = (smoke / name / f"{name}.txt").read_text()
    assert all(f"{float(row['accuracy']):.2%}" in shown for row in found)
    net = (smoke / name / "ssl.prototxt").read_text()
    assert "kernel_shape_decay_mult: 1" in net or "block_group_lasso" in net
    assert "connectivity_mode: DISCONNECTED_" in (smoke / name / "masked.prototxt").read_text()


def test_guided_pruning_of_alexnet_leaves_a_net(smoke: Path) -> None:
    found = rows(smoke / "gsl_alexnet" / "pruned" / "layers.csv")
    assert all(0 < float(row["share"]) < 1 for row in found)


def test_alexnet_is_cut_by_the_papers_ranks(smoke: Path) -> None:
    assert {row["ranks"] for row in rows(smoke / "alexnet" / "alexnet.csv")} == {"8/40/150/160/120"}
    net = (smoke / "alexnet" / "cut" / "no_force.prototxt").read_text()
    assert "kernel_h: 11" in net and "kernel_w: 11" in net


@pytest.mark.parametrize("folder", [*NETS, *SPARSE, "lenet/frontier", "lenet/sweep"])
def test_pictures_are_pictures(folder: str, smoke: Path) -> None:
    pictures = list((smoke / folder).rglob("*.svg"))
    assert pictures
    for picture in pictures:
        drawn = ElementTree.fromstring(picture.read_text())
        assert drawn.tag.endswith("}svg") and len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) > 20


@pytest.mark.parametrize("folder", NETS)
def test_every_net_has_the_papers_figures(folder: str, smoke: Path) -> None:
    figures = "1_basis", "2_lda", "3_angles", "4_ranks_Constant", "4_ranks_Degradation", "5_finetuning"
    assert sorted(path.stem for path in (smoke / folder / "pictures").iterdir()) == sorted(figures)


def test_lenet_has_a_row_for_every_claim(smoke: Path) -> None:
    caffe = [line.split() for line in (smoke / "lenet/caffe/results.txt").read_text().splitlines()]
    assert [line[:2] for line in caffe[1:]] == [
        ["Degradation", "0"], ["Constant", "0.001"], ["Constant", "0.0001"], ["Degradation", "0.001"]
    ]  # fmt: skip
    assert all(0 <= float(line[2]) <= 1 and line[4].count("/") == 1 for line in caffe[1:])
    methods = rows(smoke / "lenet/frontier/methods.csv")
    assert {row["net"] for row in methods} == {"no force", "Degradation 0.001", "Constant 0.0001"}
    assert {row["method"] for row in methods} == {"", "pca", "vh"}
    assert len(rows(smoke / "lenet/sweep/results.csv")) == 7


def test_ternary_gradients_are_compared_with_float32(smoke: Path) -> None:
    found = rows(smoke / "terngrad_lenet" / "terngrad_lenet.csv")
    assert [(row["net"], row["workers"], row["gradients"]) for row in found] == [
        ("lenet", "1", "float32"), ("lenet", "2", "ternary")
    ]  # fmt: skip
    whole, terse = (float(row["accuracy"]) for row in found)
    assert 0 <= terse <= 100 and float(found[1]["points_off"]) == pytest.approx(terse - whole, abs=0.006)
    assert "are ternary: 8 blobs" in (smoke / "terngrad_lenet" / "lenet_ternary_2_seed1.log").read_text()


def test_run_again_nothing_is_trained(smoke: Path, tmp_path: Path) -> None:
    def trained() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.caffemodel.h5")}

    out = shutil.copytree(smoke / "convnet", tmp_path / "convnet", symlinks=True)
    before = trained()
    table = out / "convnet.csv"
    table.unlink()
    done = forked("convnet", "", out, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained() == before and len(rows(table)) == 3
    assert "fine-tuned:" not in done.stdout and "== baseline" not in done.stdout


@pytest.mark.parametrize("script", [*scripts(), "all"])
def test_without_data_the_usage_is_shown(script: str, tmp_path: Path) -> None:
    done = run(script, cwd=tmp_path)
    assert done.returncode == 2
    assert f"bash scripts/paper/{script}.sh " in done.stderr and "lib.sh" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_not_there(tmp_path: Path) -> None:
    lacking = run("alexnet", tmp_path, tmp_path / "out", cwd=tmp_path)
    assert lacking.returncode == 1
    assert f"alexnet: {tmp_path}/ilsvrc12_train_lmdb: not there; make it by forcereg data images" in lacking.stderr
    none = run("all", tmp_path, tmp_path / "out", cwd=tmp_path)
    assert none.returncode == 0
    assert f"googlenet: left out, no {tmp_path}/imagenet" in none.stdout


@pytest.mark.parametrize(
    ("script", "variable", "value", "message"),
    [
        ("lenet", "STEPS", "paper papr", "STEPS has 'papr'; expected of: paper caffe frontier sweep"),
        ("convnet", "SCALE", "ten", "SCALE has 'ten'; expected numbers, as in 0.1 or 1e-4"),
        ("convnet", "LAMBDAS", "1e-4 high", "LAMBDAS has 'high'; expected numbers"),
        ("alexnet", "TYPES", "Constant Spring", "TYPES has 'Spring'; expected of: Constant Degradation"),
        ("resnet20", "N", "3,five", "N is '3,five'; expected blocks with commas, as in 3,5,9"),
    ],
)
def test_a_variable_that_is_none_ends_it_at_once(
    script: str, variable: str, value: str, message: str, tmp_path: Path
) -> None:
    done = run(script, tmp_path, tmp_path / "out", cwd=tmp_path, **{variable: value})
    assert done.returncode == 2 and f"{script}: {message}" in done.stderr and "==" not in done.stdout
