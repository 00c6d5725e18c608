"""--keep-best, --patience and --stop-when: what tests decide, and that it goes on exactly where a run is resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from forcereg import snapshot
from tests.commands.conftest import Cli, said
from tests.commands.run_control import Runs

LINE = "I1201 01:05:17.696653 7666 solver.py:1] "
UNTESTED = ("--set", "test_interval=0", "--set", "test_iter=")


def best_of(told: str) -> list[tuple[int, float]]:
    """Iteration and accuracy of every test that was better than those before, by the tests' own lines."""
    tests = re.findall(r"Iteration (\d+), Testing net \(#0\)\n.*accuracy = (\S+)", told)
    found: list[tuple[int, float]] = []
    for iteration, value in tests:
        if not found or float(value) > found[-1][1]:
            found.append((int(iteration), float(value)))
    return found


def test_the_best_net_is_kept(tiny: Runs) -> None:
    told = tiny.train("--keep-best", "--seed", "3")
    expected = best_of(told)
    said = [(int(at), float(value)) for at, value in re.findall(r"Iteration (\d+), best accuracy = ([\d.]+)", told)]
    assert said == expected and len(expected) > 2
    events = tiny.events("best")
    assert [one["iteration"] for one in events] == [at for at, _ in expected]
    assert events[0]["before"] is None and events[1]["before"] == {"value": events[0]["value"], "iteration": 0}
    # the files are of the last of these, and the pair is one
    state, model = snapshot.read_state(tiny.root / "n_best.solverstate.h5"), tiny.root / "n_best.caffemodel.h5"
    assert events[-1]["model"] == str(model)
    assert state.iteration == expected[-1][0] and state.goes_with(snapshot.read_model(model))
    assert f"kept as {model}" in told


def test_it_scores_as_it_did(tiny: Runs) -> None:
    """Also where a later test was worse; by loss less is better."""
    tiny.train("--keep-best", "loss", "--set", "base_lr=0.9", "--set", "max_iter=15")
    *_, last = tiny.events("best")
    assert last["way"] == "min" and last["value"] == min(
        output["value"] for event in tiny.events("test") for output in event["outputs"] if output["name"] == "loss"
    )
    call = ("test", "--model", "net.prototxt", "--weights", "n_best.caffemodel.h5", "--iterations", "5")
    done = tiny.run_cli(*call, cwd=tiny.root)
    assert re.search(rf"loss = {last['value']:.5f}"[:-1], done.stderr + done.stdout)


def test_a_resumed_run_keeps_the_same(tiny: Runs) -> None:
    """Bit for bit: what was the best, since when there was none, and so where patience ends."""
    ask = ("--keep-best", "--patience", "2", "--set", "base_lr=1.5", "--set", "max_iter=100", "--set", "snapshot=5")
    whole, (end,) = tiny.train(*ask), tiny.events("enough")
    assert f"stopping early: {end['text']}" in whole and end["reason"] == "patience"
    assert 0 < end["iteration"] < 100
    files = tiny.files("n_*")
    assert f"n_iter_{end['iteration']}.solverstate.h5" in files
    saved = {int(re.findall(r"\d+", name)[0]) for name in files if name.startswith("n_iter")}
    stopped = max(saved - {end["iteration"]})
    for path in tiny.root.glob("n_*"):
        if int((re.findall(r"iter_(\d+)", path.name) or [999])[0]) > stopped:
            path.unlink()
    told = tiny.train(*ask, "--resume", "auto")
    assert f"_iter_{stopped}.solverstate" in told
    after = tiny.files("n_*")
    late = {name for name in files if f"iter_{stopped}" not in name and "best" not in name}
    assert {name: files[name] for name in late} == {name: after[name] for name in late}
    if any(event["iteration"] >= stopped for event in tiny.events("best")):
        assert {n: b for n, b in files.items() if "best" in n} == {n: b for n, b in after.items() if "best" in n}
    # and one that has come to its end knows it
    again = tiny.train(*ask, "--resume", "auto")
    assert "stopping early" in again and tiny.files("n_iter*") == {n: b for n, b in after.items() if "iter" in n}
    # with more patience it goes on as if it had never stopped
    more = ("--keep-best", "--patience", "3", "--set", "base_lr=1.5", "--set", "max_iter=100", "--set", "snapshot=5")
    tiny.train(*more, "--resume", "auto")
    resumed = tiny.files("n_iter*")
    for path in tiny.root.glob("n_*"):
        path.unlink()
    tiny.train(*more)
    straight = tiny.files("n_iter*")
    assert {**resumed, **straight} == resumed


def test_the_best_net_s_state_goes_on_exactly(tiny: Runs) -> None:
    tiny.train("--keep-best", "--set", "max_iter=20")
    best = tiny.events("best")[-1]["iteration"]
    assert best > 0
    files = tiny.files("n_iter_20*")
    (tiny.root / "n_iter_20.solverstate.h5").unlink()
    tiny.train("--keep-best", "--set", "max_iter=20", "--snapshot", "n_best.solverstate.h5")
    if best < 20:
        assert tiny.files("n_iter_20*") == files


def test_a_goal_ends_it(tiny: Runs) -> None:
    told = tiny.train("--stop-when", "accuracy > 0.5", "--set", "snapshot=0", "--set", "max_iter=200")
    (end,) = tiny.events("enough")
    assert end["reason"] == "stop_when" and "accuracy is 0." in end["text"]
    assert (tiny.root / f"n_iter_{end['iteration']}.caffemodel.h5").is_file()
    assert told.count("Optimization Done.") == 2 and not tiny.files("n_best*")


def test_several_test_nets(tiny: Runs) -> None:
    nets = ("--set", "test_iter=[5,2]", "--set", 'test_state=[{},{stage: "sums"}]')
    tiny.train("--keep-best", "sum#1:min", "--stop-when", "accuracy#1>0.4", *nets)
    events = tiny.events("best")
    assert {event["net"] for event in events} == {1} and {event["output"] for event in events} == {"sum"}
    assert [event["value"] for event in events] == sorted((event["value"] for event in events), reverse=True)


def test_several_processes(tiny: Runs) -> None:
    """All agree, rank 0 writes."""
    tiny.train("--nproc", "2", "--global-batch", "--keep-best", "--patience", "1", "--set", "base_lr=1.5")
    assert tiny.events("best") and len(tiny.events("enough")) == 1
    assert snapshot.read_state(tiny.root / "n_best.solverstate.h5").iteration == tiny.events("best")[-1]["iteration"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        pytest.param(["--keep-best", "acuracy"], 1, "has no output 'acuracy'; did you mean \"accuracy\"?", id="name"),
        pytest.param(["--keep-best", "accuracy#1"], 1, "there is no test net #1 to judge by; tested are #0", id="net"),
        pytest.param(["--keep-best", ""], 2, "--keep-best is ''; expected an output of the test net", id="empty"),
        pytest.param(["--keep-best", *UNTESTED], 1, "there are no tests to judge by", id="no-tests"),
        pytest.param(["--stop-when", "accuracy=1"], 2, "--stop-when is 'accuracy=1'; expected an output, a", id="sign"),
        pytest.param(["--stop-when", "accuracy>nan"], 2, "expected an output, a sign and a number", id="nan"),
        pytest.param(["--patience", "0"], 2, "--patience", id="patience"),
        pytest.param(
            ["--keep-best", "sum", "--set", 'test_state={stage: "sums"}'], 1, "say sum:max or sum:min", id="way"
        ),
    ],
)
def test_slips(args: list[str], code: int, says: str, tiny: Runs, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.root)
    found, _, err = cli("train", "--solver", "solver.prototxt", *args)
    assert found == code and says in said(err)
    assert not list(Path().glob("n_*"))


def test_the_report_names_it(tiny: Runs) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    from forcereg import report_on

    told = tiny.train("--keep-best", "--set", "max_iter=15")
    best = tiny.events("best")[-1]
    (tiny.root / "train.log").write_text("".join(f"{LINE}{line}\n" for line in told.splitlines()))
    early = json.dumps({"event": "enough", "iteration": 15, "reason": "patience", "text": "no better <one>"})
    for log, line in (("log", early), ("train.log", LINE + "Iteration 15, stopping early: no better <one>")):
        with open(tiny.root / log, "a") as file:
            file.write(line + "\n")
        page = report_on(tiny.root / log).html()
        assert "stopped early at iteration 15: no better &lt;one&gt;" in page
        assert f"best accuracy {best['value']:g} at iteration {best['iteration']}" in page
        assert "n_best.caffemodel.h5" in page
