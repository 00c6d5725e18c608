"""The shell scripts parse, and the quickstart counts and tells rightly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import quickstart
import torch

import forcereg
from forcereg.system.shipped import configs_dir

TOP = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted(TOP.glob("scripts/**/*.sh")), TOP / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(TOP).as_posix())
def test_shell_syntax(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        pytest.param(["--help"], 0, "--mnist DIR", id="help"),
        pytest.param(["--minst", "x"], 2, "unknown argument '--minst'", id="typo"),
        pytest.param(["--mnist"], 1, "--mnist needs a folder", id="no-value"),
        pytest.param(["--mnist", "/nonexistent"], 1, "--mnist /nonexistent: no such folder", id="no-folder"),
    ],
)
def test_quickstart_arguments(args: list[str], code: int, says: str, tmp_path: Path) -> None:
    call = ["bash", TOP / "scripts" / "quickstart.sh", *args]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_quickstart_counts_multiply_accumulates() -> None:
    net = forcereg.load_net(configs_dir() / "examples/mnist/lenet.prototxt")
    assert quickstart.macs(net) == pytest.approx((24 * 24 * 500 + 8 * 8 * 25000 + 800 * 500 + 5000) / 1e6)
    assert [quickstart.rank(net, layer, whole=True) for layer in ("conv1", "conv2")] == ["20", "50"]
    assert quickstart.rank(net, "conv1", whole=False) == "whole"


def test_quickstart_knows_the_rank_that_an_error_needs() -> None:
    net = forcereg.load_net(configs_dir() / "examples/mnist/lenet.prototxt", seed=1)
    weight = net.params["conv1"][0].detach().reshape(20, -1).double()
    singular = torch.linalg.svdvals(weight) ** 2
    left = 1 - torch.cumsum(singular, 0) / singular.sum()
    assert quickstart.needed_rank(net, "conv1", 0.05) == 1 + int((left > 0.05).sum())


def rows(**changed: tuple[float, float]) -> dict[str, quickstart.Row]:
    """The digits' table of an earlier run; `changed`: net -> accuracy before and behind fine-tuning."""

    def row(kind: str, cut: str, ranks: str, accuracy: float, tuned: float, needed: str = "") -> quickstart.Row:
        name = kind + {"as trained": "", "5% error": "_error", "same ranks": "_ranks"}[cut]
        return quickstart.Row(kind, cut, ranks, needed, 1.0, *changed.get(name, (accuracy, tuned)))

    return {
        "plain": row("plain", "as trained", "20/50", 0.971, 0.972, "14/45"),
        "plain_error": row("plain", "5% error", "whole/45", 0.962, 0.963),
        "plain_ranks": row("plain", "same ranks", "4/4", 0.911, 0.952),
        "force": row("force", "as trained", "20/50", 0.974, 0.975, "2/1"),
        "force_error": row("force", "5% error", "2/1", 0.972, 0.946),
        "force_ranks": row("force", "same ranks", "4/4", 0.983, 0.985),
    }


@pytest.mark.parametrize(
    ("at_error", "told"),
    [
        pytest.param((0.225, 0.946), "falls from 97.4% to 22.5%", id="falls"),
        pytest.param((0.972, 0.946), "it keeps 97.2% of 97.4%; fine-tuned, 94.6%", id="keeps"),
    ],
)
def test_quickstart_conclusion_tells_the_table(at_error: tuple[float, float], told: str) -> None:
    text = quickstart.conclusion(rows(force_error=at_error), 0.05, 300)
    whole, cut = ("97.5%", "97.2%"), ("98.3%", "91.1%", "98.5%", "95.2%")
    for number in (told, "rank 2/1", "14/45", "94.6%", "rank 4/4", "300 test", *whole, *cut):
        assert number in text
    assert "the chain for conv1 (14) without force would cost no less: not cut." in text
    assert "below 2.0 points" in text


@pytest.mark.parametrize(
    ("force", "plain", "said"),
    [
        pytest.param((0.983, 0.985), (0.911, 0.952), "Force helps, as cut and fine-tuned.", id="helps"),
        pytest.param((0.911, 0.97), (0.983, 0.972), "As cut, force harms; fine-tuned, it makes no", id="harms"),
        pytest.param((1.0, 1.0), (1.0, 1.0), "Force makes no difference, as cut and", id="same"),
    ],
)
def test_quickstart_claims_nothing_that_chance_may_have_done(
    force: tuple[float, float], plain: tuple[float, float], said: str
) -> None:
    assert said in quickstart.conclusion(rows(force_ranks=force, plain_ranks=plain), 0.05, 300)
    assert 0 < quickstart.chance(1.0, 300) < quickstart.chance(0.97, 300) < quickstart.chance(0.5, 300)


def test_quickstart_without_a_net_that_would_be_cheaper() -> None:
    """At the error no chain of it costs less: there is no such row."""
    few = rows()
    del few["plain_error"]
    few["force_error"].ranks = "whole/1"
    text = quickstart.conclusion(few, 0.05, 300)
    assert "the chains for conv1 (14) and conv2 (45) without force would cost no less: not cut." in text
    assert "the chain for conv1 (2) with force would cost no less: not cut." in text
    del few["force_error"]
    assert "Cut there" not in quickstart.conclusion(few, 0.05, 300)
