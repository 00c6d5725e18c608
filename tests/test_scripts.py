"""The shell scripts parse, and the quickstart counts and tells rightly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import quickstart

import forcereg
from forcereg.shipped import configs_dir

TOP = Path(__file__).resolve().parents[1]
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
    assert [quickstart.rank(net, layer) for layer in ("conv1", "conv2")] == [20, 50]


def rows(force_at_error: float) -> dict[str, quickstart.Row]:
    def row(kind: str, cut: str, ranks: str, accuracy: float, tuned: float | None = None) -> quickstart.Row:
        return quickstart.Row(kind, cut, ranks, 1.0, accuracy, tuned)

    return {
        "plain": row("plain", "as trained", "20/50", 0.971),
        "plain_error": row("plain", "5% error", "14/45", 0.962, 0.963),
        "plain_ranks": row("plain", "same ranks", "4/4", 0.911, 0.952),
        "force": row("force", "as trained", "20/50", 0.974),
        "force_error": row("force", "5% error", "2/1", force_at_error, 0.946),
        "force_ranks": row("force", "same ranks", "4/4", 0.983, 0.985),
    }


@pytest.mark.parametrize(
    ("force_at_error", "told"),
    [
        pytest.param(0.225, "falls from 97.4% to 22.5%", id="falls"),
        pytest.param(0.972, "it keeps 97.2% of 97.4%", id="keeps"),
    ],
)
def test_quickstart_conclusion_tells_the_table(force_at_error: float, told: str) -> None:
    text = quickstart.conclusion(rows(force_at_error), 0.05, 300)
    for number in (told, "rank 2/1", "14/45", "94.6%", "rank 4/4", "98.3%", "91.1%", "98.5%", "95.2%", "300 test"):
        assert number in text
    assert "below 1.8 points" in text
