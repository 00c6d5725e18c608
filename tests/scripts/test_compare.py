"""scripts/paper/compare: arms, proximal steps, rows and tables of the comparison."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paper.compare import arms, proximal, tables

from forcereg.net.module import Learnable
from tests.conftest import TOP, RunCli
from tests.nursery import Nursery

COMPARE = TOP / "scripts" / "paper" / "compare"


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("none", {"force_decay": 0.0}),
        ("Degradation:1e-3", {"force_decay": 1e-3, "force_type": "Degradation"}),
        ("Constant:2e-4:BOTH:half", {"force_decay": 2e-4, "force_type": "Constant", "force_iter": 500}),
        (
            "Degradation:1:responses:slowly",
            {
                "force_decay": 1.0, "force_type": "Degradation", "force_metric": "responses", "force_iter": 750,
                "force_release": 250,
            },
        ),
        ("Degradation:1:afresh", {"force_decay": 1.0, "force_type": "Degradation"}),
        ("nuclear:0.1", {"force_decay": 0.0}),
        ("adaptive:0.2", {"force_decay": 0.2, "force_type": "Degradation", "force_decay_type": "adaptive"}),
    ],
)  # fmt: skip
def test_an_arm_is_solver_fields(word: str, fields: dict[str, object]) -> None:
    assert arms.arm_of(word).fields(1000) == fields


@pytest.mark.parametrize(
    "word", ["force:1", "Constant:1:SIDEWAYS", "none:1", "Constant:strong", "Constant", "none:afresh", "clip:1:afresh"]
)
def test_another_word_is_no_arm(word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: "):
        arms.arm_of(word)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--arms", "none,Constant"), "--arms: Constant: expected Constant:STRENGTH"),
        (("--methods", "pca,pcb"), "--methods: 'pcb' is none of cp, "),
        (("--budgets", "0.3,x"), "--budgets: 'x' is no number"),
        (("--budgets", "30"), "--budgets: the share of MACs to keep is 30; expected above 0, at most 1"),
        (("--choose", "minimax"), "--choose: 'minimax' is none of energy, minmax"),
        (("--teacher", "maybe"), "--teacher: 'maybe' is none of no, yes"),
    ],
)
def test_wrong_words_are_told_before_anything_is_trained(
    args: tuple[str, ...], message: str, nursery: Nursery, tmp_path: Path
) -> None:
    done = nursery.run(COMPARE, "lenet", *args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())


def learnable(weight: torch.Tensor) -> Learnable:
    return Learnable(layer="conv", index=0, blob=weight, lr_mult=1, decay_mult=1, force_mult=1)


def solver() -> SimpleNamespace:
    return SimpleNamespace(lr_policy="fixed", base_lr=0.1, momentum=0.9, warmup_iter=0)


def test_nuclear_steps_lower_all_singular_values_by_the_same() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    before = torch.linalg.svdvals(weight.flatten(1).double())
    with proximal.asking(nuclear=0.05):
        made = proximal.Nuclear([learnable(weight)], solver(), weight.device)
        assert [at for at in range(20) if made.feels(at)] == [9, 19]
        made.project()
    # 0.05 times ten steps of 0.1 / (1 - 0.9)
    torch.testing.assert_close(
        torch.linalg.svdvals(weight.flatten(1).double()), (before - 0.5).clamp(min=0), atol=1e-6, rtol=0
    )
    assert not proximal.Nuclear([learnable(weight)], solver(), weight.device).touched


@pytest.mark.parametrize(("iteration", "rank"), [(9, 6), (59, 4), (99, 2), (199, 2)])
def test_exact_ranks_fall_evenly_and_stay(iteration: int, rank: int) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    with proximal.asking(ranks={"conv": 2}, end=100):
        made = proximal.ExactRank([learnable(weight)], solver(), weight.device)
        assert made.feels(iteration)
        made.project()
    assert torch.linalg.matrix_rank(weight.flatten(1).double(), rtol=1e-5) == rank


def test_nuclear_steps_are_those_of_torchao() -> None:
    pat = pytest.importorskip("torchao.prototype.pat.group.low_rank", reason="torchao isn't installed")
    from torchao.prototype.pat.optim import ProxNuclearNorm

    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    theirs = weight.clone()
    with pat.SVDGrouper(theirs) as group:
        ProxNuclearNorm(0.05).apply_(group.p, 10.0)
    with proximal.asking(nuclear=0.05):
        proximal.Nuclear([learnable(weight)], solver(), weight.device).project()
    torch.testing.assert_close(weight, theirs)


def script(nursery: Nursery, path: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = nursery.run(path, *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_a_comparison_writes_a_row_a_point_and_goes_on(nursery: Nursery, run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("configs", "copy", ".", "examples/mnist/*", cwd=tmp_path)
    run_cli("data", "digits", "examples/mnist", cwd=tmp_path)

    def run(arms: str, *more: str) -> subprocess.CompletedProcess[str]:
        asked = ("lenet", "--scale", "0.001", "--methods", "pca", "--budgets", "0.3", "--arms", arms, *more)
        return script(nursery, COMPARE, *asked, cwd=tmp_path)

    assert run("none").stdout.count("arm=") == 1
    told = run("none,Degradation:1e-3:half,Constant:1e-3:afresh,clip:0.9,exact:0.3")
    arms = ["Degradation:1e-3:half", "Constant:1e-3:afresh", "clip:0.9", "exact:0.3"]
    assert [line.split()[0] for line in told.stdout.splitlines()] == [f"arm={arm}" for arm in arms]
    assert "arm=none" not in run("none").stdout
    with (tmp_path / "results" / "lenet_1.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["arm"] for row in rows] == ["none", *arms]
    # not from the base that the others go on from
    assert [path.name for path in (tmp_path / "runs" / "lenet_1").glob("*afresh_base_iter_20.caffemodel.h5")]
    assert all(0 <= float(row[column]) <= 1 for row in rows for column in ("whole", "whole_tuned", "cut", "tuned"))
    # of the net that was trained first, whatever clipping has left
    assert all(float(row["macs"]) <= 0.3 for row in rows)
    # another seed's rows in one file aren't its own
    assert run("none", "--seed", "2", "--csv", "results/lenet_1.csv").stdout.count("arm=none") == 1


def test_tables_are_means_over_seeds_and_their_spread() -> None:
    def row(seed: int, arm: str, method: str, cut: str, tuned: str) -> dict[str, str]:
        return {"seed": str(seed), "arm": arm, "method": method, "whole": "0.99", "cut": cut, "tuned": tuned}

    rows = [row(1, "none", "pca", "0.9", "0.95"), row(2, "none", "pca", "0.8", "0.97"), row(1, "none", "vh", "", "")]
    assert list(tables.table(rows, ["arm"], ["method"])) == [
        "| arm | seeds | whole | pca | vh |",
        "|---|---|---|---|---|",
        "| none | 2 | 99.0 (99.0 to 99.0) | 85.0 (80.0 to 90.0) → 96.0 (95.0 to 97.0) | - |",
    ]
    for one in rows:
        del one["whole"]
    assert list(tables.table(rows, ["method"], ["seed"], ["tuned"], 2))[2:] == [
        "| pca | 2 | 95.00 | 97.00 |",
        "| vh | 1 | - | - |",
    ]
    assert tables.chosen(rows, {"method": ["vh"]}) == [rows[2]]


def test_rows_are_listed_as_they_are() -> None:
    rows = [{"decay": "1e-3", "last_stage": "1 2"}, {"decay": "1e-4", "last_stage": "40 41"}]
    assert list(tables.listed(rows, ["last_stage", "decay"])) == [
        "| last stage | decay |", "|---|---|", "| 1 2 | 1e-3 |", "| 40 41 | 1e-4 |",
    ]  # fmt: skip


PAGE = (TOP / "scripts" / "paper" / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```\npython (scripts/paper/compare/tables.py [^`]*)\n```\n\n((?:\|.*\n)+)", PAGE)


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[str(at) for at in range(len(SHOWN))])
def test_the_page_shows_what_the_rows_say(command: str, shown: str) -> None:
    words = shlex.split(command.replace("\\\n", " "))[1:]
    files = [str(path) for word in words if word.endswith(".csv") for path in sorted(TOP.glob(word))]
    assert tables.told([*files, *(word for word in words if not word.endswith(".csv"))]) == shown.splitlines()


def test_the_page_shows_tables() -> None:
    assert len(SHOWN) >= 3


@pytest.mark.parametrize("start", [[], ["--afresh"]], ids=["trained", "afresh"])
def test_a_try_at_collapse_is_a_row(nursery: Nursery, run_cli: RunCli, tmp_path: Path, start: list[str]) -> None:
    run_cli("configs", "copy", ".", "examples/cifar10/*resnet20*", cwd=tmp_path)
    folder = tmp_path / "examples" / "cifar10"
    script(nursery, COMPARE.parent / "made_data.py", "cifar10", str(folder), cwd=tmp_path)
    tiny = ("--set", "force_decay=0", "--set", "test_iter=1", "--max-iter", "1", "--device", "cpu")
    run_cli("train", "--solver", "examples/cifar10/cifar10_resnet20_force_solver.prototxt", *tiny, cwd=tmp_path)
    weights = next(folder.glob("*iter_1.caffemodel.h5"))
    options = ["--decay", "1", "--rate", "0.1", "--iterations", "2", "--tests", "1", "--layers", "last"]
    script(nursery, COMPARE / "collapse.py", str(weights), *start, *options, cwd=tmp_path)
    with (tmp_path / "results" / "collapse.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    before, after = (list(map(int, row[column].split())) for column in ("ranks_before", "ranks"))
    assert len(after) == len(before) == 19 and after[-6:] == list(map(int, row["last_stage"].split()))
    # only the last stage was drawn together; the others just train, which may move a rank that is on the edge
    assert sum(after[-6:]) < sum(before[-6:]) / 4 and sum(after[:13]) > sum(before[:13]) * 0.8
