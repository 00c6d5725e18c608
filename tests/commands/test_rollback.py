"""--on-nan rollback: a run that diverges goes back to its last snapshot at a lower rate."""

from __future__ import annotations

import re

import pytest

from forcereg import snapshot
from forcereg.errors import UsageError
from forcereg.solver.rollback import OnNan
from tests.commands.conftest import said
from tests.commands.run_control import Runs

FAST = ("--set", "base_lr=0.2", "--set", "momentum=0")
ASK = ("--on-nan", "rollback:5:0.1", *FAST)


@pytest.fixture
def steep(tiny: Runs) -> Runs:
    """Of a squared hinge loss, which diverges where the rate is too high."""
    net = tiny.root / "net.prototxt"
    hinge = 'type: "HingeLoss" hinge_loss_param { norm: L2 }'
    net.write_text(net.read_text().replace('type: "SoftmaxWithLoss"', hinge))
    return tiny


def test_a_run_that_diverges_ends_at_a_lower_rate(steep: Runs) -> None:
    """Said in log and events; what it leaves is that of a run that was resumed behind it, bit for bit."""
    assert "is not finite at iteration" in said(steep.train(*FAST, code=1))
    for path in steep.root.glob("n_*"):
        path.unlink()
    told = steep.train(*ASK)
    back = steep.events("rollback")
    assert back and [one["done"] for one in back] == list(range(1, len(back) + 1))
    assert [one["factor"] for one in back] == pytest.approx([0.1**n for n in range(1, len(back) + 1)])
    assert back[0]["iteration"] == 10 and back[0]["state"].endswith("n_iter_10.solverstate.h5")
    assert "Going back to iteration 10 with the rate times 0.1 (1 of at most 5)" in told
    rates = [float(one) for one in re.findall(r", lr = (\S+)", told)]
    assert rates[0] == 0.2 and rates[-1] == pytest.approx(0.2 * 0.1 ** len(back))
    state = snapshot.read_state(steep.root / "n_iter_30.solverstate.h5")
    assert state.extra is not None and state.extra["rollbacks"]["done"] == len(back)
    files = steep.files("n_*")
    # going on from before that it does the same, from behind it the factor is the state's, asked for or not
    for more, lost in ((ASK, "n_iter_[23]0.*"), (FAST, "n_iter_30.*")):
        for path in steep.root.glob(lost):
            path.unlink()
        steep.train(*more, "--resume", "auto")
        assert steep.files("n_*") == files


def test_it_gives_up(steep: Runs) -> None:
    text = said(steep.train("--on-nan", "rollback:2:0.99", *FAST, code=1))
    assert "(it went back 2 times; the rate is 0.9801 times as large)" in text
    # where a loss isn't finite again without a snapshot in between, it goes to the one before
    assert [one["iteration"] for one in steep.events("rollback")] == [10, 0]


def test_all_together(steep: Runs, long_form: bool) -> None:
    """With the best net of averaged weights, patience, a goal and callbacks: resumed bit for bit."""
    (steep.root / "hooks.py").write_text(
        "def told(event, solver):\n"
        "    if event.kind == 'test':\n"
        "        print('test', event.iteration, solver.iter, flush=True)\n"
        "    if event.kind == 'train' and event.iteration == 15:\n"
        "        solver.snapshot_requested = True\n"
    )
    ask = (
        *ASK,
        "--keep-best",
        "accuracy_ema",
        "--patience",
        "9",
        "--stop-when",
        "accuracy>=0.999",
        "--callback",
        "hooks:told",
    )
    ask = (
        *ask,
        "--ema",
        "0.9",
        "--warmup",
        "3",
        "--keep",
        "9",
        *(("--nproc", "2", "--global-batch", "--gradients", "ternary") if long_form else ()),
    )
    steep.train(*ask)
    assert steep.events("rollback") and steep.events("best")
    files = steep.files("n_*")
    assert any("iter_16" in name or "iter_17" in name for name in files)
    for path in [*steep.root.glob("n_iter_1[67].*"), *steep.root.glob("n_iter_[23]0.*")]:
        path.unlink()
    steep.train(*ask, "--resume", "auto")
    after = steep.files("n_*")
    assert {n: b for n, b in after.items() if "best" not in n} == {n: b for n, b in files.items() if "best" not in n}
    if any(event["iteration"] > 10 for event in steep.events("best")):
        assert after == files


def test_data_that_is_not_finite_is_no_matter_of_the_rate(steep: Runs) -> None:
    net = steep.root / "net.prototxt"
    net.write_text(net.read_text().replace("0.00390625", "3e38", 1))
    text = said(steep.train(*ASK, code=1))
    assert not steep.events("rollback") and "finite" in text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("stop", None),
        ("rollback", OnNan(3, 0.5)),
        ("rollback:7", OnNan(7, 0.5)),
        ("rollback:1:0.1", OnNan(1, 0.1)),
        ("rollback:2:1e-3", OnNan(2, 1e-3)),
    ],
)
def test_what_is_asked(text: str, meant: OnNan | None) -> None:
    assert OnNan.of(text) == meant


@pytest.mark.parametrize("text", ["", "go", "rollback:", "rollback:0", "rollback:3:1", "rollback:3:0", "rollback:3:x"])
def test_what_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="expected stop or rollback:N:FACTOR"):
        OnNan.of(text)
