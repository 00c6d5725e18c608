"""Log lines of other Caffes, and lines behind what containers, launchers and CI put in front of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcereg.report.curves import read_run
from forcereg.report.points import Run
from tests.conftest import RunCli
from tests.report.test_curves import CAFFE, written

Found = dict[str, list[tuple[int, float]]]


def points(run: Run) -> Found:
    return {name: list(zip(curve.iterations, curve.values, strict=True)) for name, curve in run.curves.items()}


NVIDIA = """\
I0511 12:00:00.000000 4711 solver.cpp:351] [0.0] Iteration 0, Testing net (#0)
I0511 12:00:01.000000 4711 solver.cpp:418] [0.0]     Test net output #0: accuracy = 0.1
I0511 12:00:01.000001 4711 solver.cpp:418] [0.0]     Test net output #1: loss = 2.3 (* 1 = 2.3 loss)
I0511 12:00:01.000002 4711 solver.cpp:240] [0.0] Iteration 0 (0.805844 s), loss = 2.4
I0511 12:00:01.000003 4711 solver.cpp:258] [0.0]     Train net output #0: loss = 2.4 (* 1 = 2.4 loss)
I0511 12:00:01.000004 4711 sgd_solver.cpp:180] [0.0] Iteration 0, lr = 0.01, m = 0.9, wd = 0.0005, gs = 1
I0511 12:00:09.000002 4711 solver.cpp:334] [0.0] Iteration 100 (12.3 iter/s, 8.1s/100 iter), loss = 1.5
I0511 12:00:09.000003 4712 sgd_solver.cpp:180] Iteration 100, lr = 0.009, m = 0.9, wd = 0.0005, gs = 1
I0511 12:00:11.000002 4711 solver.cpp:334] [0.0] Iteration 200 (45.2 iter/s, 2.2s/100 iter), 12.8/90.0ep, loss = 0.5
"""


def test_nvidias_caffe(tmp_path: Path) -> None:
    assert points(read_run(written(tmp_path, NVIDIA))) == {
        "test accuracy": [(0, 0.1)],
        "test loss": [(0, 2.3)],
        "train loss": [(0, 2.4), (100, 1.5), (200, 0.5)],
        "train output loss": [(0, 2.4)],
        "lr": [(0, 0.01), (100, 0.009)],
    }


def test_of_several_gpus_the_first_counts(tmp_path: Path) -> None:
    both = [line for one in NVIDIA.splitlines() for line in (one, one.replace("[0.0]", "[0.1]").replace(" = ", " = 9"))]
    lines = [line for line in both if "[0." in line]
    found = points(read_run(written(tmp_path, "".join(f"{line}\n" for line in lines))))
    alone = "".join(f"{line}\n" for line in NVIDIA.splitlines() if "[0.0]" in line)
    assert found == points(read_run(written(tmp_path, alone)))


def test_caffe_of_2014_and_on_windows(tmp_path: Path) -> None:
    head = "I0917 15:36:23.184696  2254 solver.cpp:270] "
    lines = [
        "Iteration 0, Testing net", "Test score #0: 0.007", "Test score #1: 15.25", "Iteration 0, loss = 1.#INF",
        "Iteration 20, loss = -1.#IND", "Iteration 40, loss = 0.5", " Train net output #0: loss = 0.5",
    ]  # fmt: skip
    found = points(read_run(written(tmp_path, "".join(f"{head}{line}\n" for line in lines))))
    assert found["test score #0"] == [(0, 0.007)] and found["test score #1"] == [(0, 15.25)]
    assert found["train output loss"] == [(40, 0.5)]
    values = [value for _, value in found["train loss"]]
    assert values[0] == math.inf and math.isnan(values[1]) and values[2] == 0.5


PREFIXES: dict[str, Callable[[int], str]] = {
    "compose": lambda n: "web_1  | ",
    "compose in colour": lambda n: "\x1b[36mweb_1  |\x1b[0m ",
    "docker -t": lambda n: f"2026-01-01T00:{n // 60 % 60:02}:{n % 60:02}.{n * 7919 % 10**9:09}Z ",
    "kubectl": lambda n: f"[pod/train-0/caffe] 2026-01-{n % 28 + 1:02}T00:00:00.{n}+01:00 ",
    "mpirun": lambda n: "[1,0]<stderr>:",
    "mpirun with times": lambda n: f"{('Mon', 'Tue')[n % 2]} Jan {n % 2 + 1:2} 23:59:{n % 60:02} 2026[1,0]<stderr>:",
    "srun": lambda n: "0: ",
    "ray": lambda n: "(train pid=123, ip=10.0.0.1) ",
    "ci": lambda n: f"[{n:8}.{n % 1000:03}] train-0: ",
    "syslog": lambda n: f"Feb {n % 28 + 1:2} 10:11:{n % 60:02} host caffe[123]: ",
}


@pytest.mark.parametrize("text", [CAFFE, NVIDIA], ids=["caffe", "nvidia"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_lines_behind_something(prefix: str, text: str, tmp_path: Path) -> None:
    plain = read_run(written(tmp_path, text))
    lines = [f"{PREFIXES[prefix](n)}{line}" for n, line in enumerate(text.splitlines())]
    end = "\x1b[0m" if "colour" in prefix else ""
    run = read_run(written(tmp_path, "".join(f"{line}{end}\n" for line in lines)))
    assert str(points(run)) == str(points(plain)) and not run.remarks


def test_dockers_own_files(tmp_path: Path) -> None:
    plain = read_run(written(tmp_path, CAFFE))
    records = [{"log": f"{line}\n", "stream": "stderr", "time": "2026-01-01T00:00:00Z"} for line in CAFFE.splitlines()]
    run = read_run(written(tmp_path, "".join(json.dumps(record) + "\n" for record in records) + '{"log": "I06'))
    assert str(points(run)) == str(points(plain))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.sampled_from(["[1,{}]<stderr>:", "web_{}  | ", "{}: "]))
def test_of_several_processes_the_first_counts(tmp_path: Path, order: list[int], front: str) -> None:
    """However their lines are mixed; each process's own stay in order."""
    waiting = [[line.replace("= 2.40197", f"= {rank}") for line in CAFFE.splitlines()[3:]] for rank in range(3)]
    lines = [(0, waiting[0].pop(0))]
    last = waiting[0].pop()  # behind which other lines would be those of a run that goes on
    for rank in (*order, *[0] * 20, *[1] * 20, *[2] * 20):
        if waiting[rank]:
            lines.append((rank, waiting[rank].pop(0)))
    lines.append((0, last))
    text = "".join(f"{front.format(rank)}{line}\n" for rank, line in lines)
    run = read_run(written(tmp_path, text))
    alone = "".join(f"{line}\n" for rank, line in lines if rank == 0)
    assert str(points(run)) == str(points(read_run(written(tmp_path, alone))))


def test_who_is_left_out_is_said(tmp_path: Path) -> None:
    lines = [f"[1,{rank}]<stderr>:{line}\n" for line in CAFFE.splitlines() for rank in (1, 0, 2)]
    run = read_run(written(tmp_path, "".join(lines)))
    said = "several processes write; the curves are those of '[1,1]<stderr>:', left out is '[1,0]<stderr>:' and 1 more"
    assert run.remarks == [f"run: {said}"]


def test_a_container_that_goes_on_with_the_run(tmp_path: Path) -> None:
    """As one that was started anew under another name, from a snapshot."""
    start = "I0612 10:11:14.423456  4711 solver.cpp:239] "
    before = "".join(f"pod-a | {start}Iteration {n}, loss = {n}\n" for n in (0, 100, 200))
    after = "".join(f"pod-b | {start}Iteration {n}, loss = 7\n" for n in (100, 200, 300))
    run = read_run(written(tmp_path, before + after))
    assert points(run) == {"train loss": [(0, 0), (100, 7), (200, 7), (300, 7)]} and not run.remarks


def test_many_blobs_of_many_elements(tmp_path: Path) -> None:
    start = "I0612 10:11:14.423456  4711 solver.cpp:239] "
    blobs, elements = 60, 5000
    text = f"{start}Iteration 100, Testing net (#0)\n"
    text += "".join(
        f"{start}    Test net output #{blob * elements + place}: each{blob} = {place if place else 'nan'}\n"
        for blob in range(blobs)
        for place in range(elements)
    )
    run = read_run(written(tmp_path, text))
    assert len(run.curves) == 3 * blobs and len(run.remarks) == blobs
    assert points(run)["test each7 least"] == [(100, 1)] and points(run)["test each7 most"] == [(100, elements - 1)]
    assert math.isnan(points(run)["test each7 mean"][0][1])


def test_csv_has_every_point(tmp_path: Path, run_cli: RunCli) -> None:
    written(tmp_path, CAFFE, "a.log")
    written(tmp_path, NVIDIA, "b.log")
    done = run_cli("plot", "a.log", "b.log", "-o", "x.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote x.csv\n"), done.stderr
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert list(rows[0]) == ["log", "phase", "name", "iteration", "value"]
    names = {"train": "train {}", "train output": "train output {}", "test": "test {}", "test #1": "test #1 {}"}
    found: dict[str, Found] = {"a": {}, "b": {}}
    for row in rows:
        name = "lr" if row["name"] == "lr" else names[row["phase"]].format(row["name"])
        found[row["log"]].setdefault(name, []).append((int(row["iteration"]), float(row["value"])))
    expected = {name: points(read_run(tmp_path / f"{name}.log")) for name in "ab"}
    assert str(found) == str(expected)


def test_csv_needs_no_matplotlib(tmp_path: Path, run_cli: RunCli) -> None:
    written(tmp_path, CAFFE)
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    done = run_cli("plot", "run.log", "-o", "x.csv", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "run,test #1,total loss,0,2.5\n" in (tmp_path / "x.csv").read_text()
