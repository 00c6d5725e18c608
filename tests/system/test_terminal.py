"""What reaches a terminal or a log is on one line and shows what it is made of; streams that are closed or full."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import printable
from forcereg.report.table import Column, Table, csv_text, numeric, shares, whole
from forcereg.solver.log import GlogWriter
from forcereg.system.memory import is_shortage
from tests.conftest import RunCli

PACKAGE = Path(__file__).resolve().parents[2] / "forcereg"
OUT, ESCAPES = "cannot write to standard output: ", "\x1b]0;T\x07\x1b[2J\r\u202e\u200b\u2028\n"
FORGED = f"a{ESCAPES}I1122 08:28:50.732753 875 solver.py:1] Iteration 0, loss = 7"
NET = f"""
name: "net{ESCAPES!a}"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 1 dim: 8 dim: 8 }} }} }}
layer {{ name: {json.dumps(FORGED)} type: "Convolution" bottom: "data" top: "[/b]"
  convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "$x$" type: "InnerProduct" bottom: "[/b]" top: {json.dumps("=1+1 " + FORGED)}
  inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
""".replace("'", "")
TRAINED = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } data_filler { type: "gaussian" } data_filler {} } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 display: 1 snapshot_prefix: "s"'


def is_clean(text: str) -> bool:
    return all(line.replace("\t", "").isprintable() for line in text.split("\n"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(TRAINED)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    (tmp_path / "hostile.prototxt").write_text(NET)
    return tmp_path


# -- names


def test_all_that_is_shown_goes_through_one_place() -> None:
    """Nothing else in the package prints, or makes tables, bars and CSV."""
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert call not in ("print", "click.echo", "click.secho", "csv.writer", "Console") or (
                name in ("system/terminal.py", "report/table.py")
            ), f"{name} calls {call}"
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.table", "rich.console", "rich.markup"):
                assert name in ("system/terminal.py", "report/table.py"), f"{name} imports {node.module}"


@pytest.mark.parametrize(
    "args",
    [
        ("summary", "hostile.prototxt"),
        ("time", "--model", "hostile.prototxt", "--iterations", "1"),
        ("draw", "hostile.prototxt", "net.txt"),
        ("draw", "hostile.prototxt", "net.dot"),
        ("summary", f"none{ESCAPES.strip()}.prototxt"),
        (f"none{ESCAPES}",),
        ("summary", f"--none{ESCAPES}"),
        ("--debug", "summary", f"none{ESCAPES.strip()}.prototxt"),
    ],
    ids=lambda args: args[0] + args[-1][-4:].strip(),
)
def test_names_reach_no_terminal_as_they_are(args: tuple[str, ...], folder: Path, run_cli: RunCli) -> None:
    done = run_cli(*args, cwd=folder, env={"COLUMNS": "80"})
    drawn = "".join(path.read_text() for path in folder.glob("net.[td]*t"))
    text = done.stdout + done.stderr + drawn
    assert is_clean(text), text
    assert "\\x1b]0;T\\x07" in text.replace("\\\\", "\\")  # graphviz wants two backslashes for one
    assert not re.search(r"^I1122", text, re.MULTILINE)


def test_a_log_line_is_one_line() -> None:
    out = io.StringIO()
    GlogWriter(out).line(f"{FORGED}\tforward")
    assert out.getvalue().count("\n") == 1 and out.getvalue().endswith("\\nI1122 08:28:50.732753 875 solver.py:1] "
                                                                       "Iteration 0, loss = 7\tforward\n")  # fmt: skip


@pytest.mark.parametrize(("encoding", "locale"), [("ascii:strict", "C.UTF-8"), ("latin-1", "C"), ("utf-8", "C")])
def test_what_a_stream_cannot_encode_comes_as_escapes(
    encoding: str, locale: str, folder: Path, run_cli: RunCli
) -> None:
    (folder / "wide.prototxt").write_text(NET.replace("$x$", "caf\\303\\251 \\346\\274\\242"))
    env = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": locale}
    call = [sys.executable, "-m", "forcereg", "summary", "wide.prototxt"]
    done = subprocess.run(call, cwd=folder, capture_output=True, env={**env, "PYTHONPATH": str(PACKAGE.parent)})
    text = done.stdout.decode(encoding.partition(":")[0])
    assert (done.returncode, done.stderr) == (0, b"")
    assert ("漢" in text) == (encoding == "utf-8") and ("\\u6f22" in text) == (encoding != "utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_file_names_of_any_bytes(folder: Path, run_cli: RunCli) -> None:
    odd = os.fsdecode(b"\xff\x1b[2J")
    for name in ("net", "solver"):
        (folder / f"{odd}{name}.prototxt").write_bytes((folder / f"{name}.prototxt").read_bytes())
    for args in (
        ("train", "--solver", f"{odd}solver.prototxt", "--log-json", f"{odd}.json"),
        ("train", "--solver", f"{odd}solver.prototxt", "--log-dir", f"{odd}none"),
        ("train", "--solver", f"{odd}solver.prototxt", "--weights", f"{odd}none.caffemodel"),
        ("train", "--solver", f"{odd}solver.prototxt", "--weights", f"{odd}.caffemodel"),
        ("summary", f"{odd}net.prototxt", "--json"),
        ("draw", f"{odd}net.prototxt", f"{odd}.txt"),
        ("plot", f"{odd}.json", "-o", f"{odd}.html"),
        ("check", f"{odd}solver.prototxt"),
        ("configs", "copy", f"{odd}configs", "examples/mnist/lenet.prototxt"),
        ("new", "lenet", f"{odd}new"),
    ):
        done = run_cli(*args, cwd=folder)
        missing = "none" in args[-1]
        assert done.returncode == missing and "internal error" not in done.stderr, (args, done.stderr)
        assert is_clean(done.stdout + done.stderr)
        assert not missing or "\\udcff\\x1b[2Jnone" in done.stderr
        if args[-1].endswith(".json"):
            (folder / "s_iter_3.caffemodel").rename(folder / f"{odd}.caffemodel")


# -- CSV


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats(), st.none()), min_size=1))
def test_cells_of_csv_are_one_line_and_no_formula(cells: list[object]) -> None:
    text = csv_text(["a"] * len(cells), [cells], ["remark \n=1"])
    assert text.splitlines()[0] == "# remark \\n=1" and is_clean(text)
    (_, row) = csv.reader(io.StringIO(text.partition("\n")[2]))
    for cell, found in zip(cells, row, strict=True):
        if isinstance(cell, str):
            assert found in (printable(cell), f"'{printable(cell)}") and (
                found[:1] not in "=+-@" or not found or float(found) is not None
            )
        elif cell is None:
            assert found == ""
        else:
            assert found == (f"{cell:.6g}" if isinstance(cell, float) else str(cell))


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\t=1"),
        ("-0.5", "-0.5"),
        ("-1e-05", "-1e-05"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        ("conv1", "conv1"),
        ("", '""'),
        (None, '""'),
    ],
)
def test_formulas_are_defused_and_numbers_stay(cell: object, shown: str) -> None:
    assert csv_text(["a"], [[cell]]) == f"a\n{shown}\n"


# -- tables


def drawn(table: Table, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    table.show()
    return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("boxed", [True, False])
def test_no_width_breaks_a_number(
    width: int, boxed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headings = ("full rank", "rank", "error", "MACs before", "MACs after", "speed-up", "params before", "params after")
    table = Table("layer", "method", *numeric(*headings), boxed=boxed)
    numbers = "96", "12 (12-8)", "0.0500", "105,415,200", "12,345,678", "12.34x", "37,752,832", "1,234,567"
    names = "conv1", "an_extremely_long_name_of_a_layer/with/parts/3x3_reduce", "[bold]fc6[/bold]"
    for name in names:
        table.row(name, "tucker2", *numbers)
    lines = drawn(table, width, monkeypatch, capsys)
    for number in numbers:
        assert sum(number in re.split(r"\s*│\s*|\s{2,}", line.strip()) for line in lines) == len(names), number
    assert width < 40 or max(map(len, lines)) <= width
    flat = "".join(re.split("│", line)[1].strip() if boxed and "│" in line else "" for line in lines)
    assert not boxed or all(name in flat for name in names)


@pytest.mark.parametrize("boxed", [True, False])
def test_parts_of_a_table_have_no_empty_rows(
    boxed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `forcereg ranks` on a narrow terminal: its last rows say nothing of the last column."""
    table = Table("layer", *numeric("rank", "cost"), whole("bars"), boxed=boxed)
    for row in (("conv1", "12", "34", "#" * 20), ("conv2", "56", "78", "+" * 20)):
        table.row(*row)
    table.section()
    table.row("speed-up", "", "2.1x", "")
    wide, narrow = (drawn(table, width, monkeypatch, capsys) for width in (100, 32))
    assert sum("speed-up" in line for line in wide) == sum("speed-up" in line for line in narrow) == 1
    second = narrow[next(at for at, line in enumerate(narrow) if "bars" in line) :]
    names = [name for line in second for name in ("conv1", "conv2", "speed-up") if name in line]
    assert names == ["conv1", "conv2"]
    assert sum("├" in line for line in narrow) == boxed  # the line is before the row that is left out


def test_room_goes_to_names_first() -> None:
    name, figure = Column("layer", cells=[["a" * 30]]), Column("params before", "number", [["1,234"]])
    assert shares([name, figure], 19) == [12, 7 - 1] or shares([name, figure], 18) == [12, 6]
    assert shares([name, figure], 36) == [30, 6]
    assert shares([name, figure], 40) == [30, 10]
    assert shares([name, figure], 100) == [30, 13]


# -- streams


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of sh in which $F is forcereg."""
    env = {
        **os.environ,
        "F": f"{sys.executable} -m forcereg",
        "PYTHONPATH": str(PACKAGE.parent),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, env=env, timeout=300)


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@needs_full
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("$F configs >&-", 0, "", ""),
        ("$F new lenet <&- >&- 2>&-", 0, "", ""),
        ("$F summary net.prototxt >/dev/full", 1, "", OUT + "no space left on device; give it room"),
        ("$F --version >/dev/full", 1, "", OUT),
        ("$F --help >/dev/full", 1, "", OUT),
        ("$F configs >/dev/full 2>/dev/full", 1, "", ""),
        ("$F configs </dev/null 1</dev/null", 1, "", OUT + "bad file descriptor"),
        ("$F layers --json >/dev/full", 1, "", OUT),
        ("$F train --solver none 2>&-", 1, "", ""),
        ("$F train --solver none 2>/dev/full", 1, "", ""),
    ],
)
def test_standard_streams(line: str, code: int, out: str, err: str, folder: Path) -> None:
    done = shell(line, folder)
    assert (done.returncode, done.stderr.count("\n")) == (code, bool(err)), done
    assert out in done.stdout and err in done.stderr


def test_a_reader_that_has_gone_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "forcereg", "configs"]
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(call, cwd=PACKAGE.parent, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


@needs_full
@pytest.mark.parametrize("streams", ["--nproc 2 <&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_training_needs_no_stream(streams: str, folder: Path) -> None:
    done = shell(f"$F train --solver solver.prototxt --log-json log.json {streams}", folder)
    assert (done.returncode, done.stderr) == (0, "")
    told = "forcereg: warning: standard error can't be written (No space left on device); going on without a log\n"
    assert done.stdout == told * (streams == "2>/dev/full")
    events = [json.loads(line)["event"] for line in (folder / "log.json").read_text().splitlines()]
    assert events[-1] == "done" and events.count("train") == 3  # no log line went into a file of number 2
    assert (folder / "s_iter_3.caffemodel").is_file()


def test_training_goes_on_when_nobody_reads_its_log(folder: Path) -> None:
    done = shell("($F train --solver solver.prototxt; echo $? >code) 2>&1 | head -1", folder)
    assert done.returncode == 0 and (folder / "code").read_text() == "0\n"
    assert (folder / "s_iter_3.caffemodel").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize("room", [100_000, 400_000, 900_000])
def test_too_little_address_space_is_one_line(room: int, folder: Path) -> None:
    done = shell(f"ulimit -v {room}; $F train --solver solver.prototxt; $F summary net.prototxt; $F --help", folder)
    allowed = f"`ulimit -v` allows {room * 1024 / 1e9:.2f} GB"
    told = f"forcereg: not enough memory: {allowed}, what computes is loaded into 1 GB at least; raise the limit"
    assert done.stderr.splitlines() == [told, told]
    assert done.returncode == 0 and "Commands:" in done.stdout


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ImportError("libhdf5.so: failed to map segment from shared object"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (ImportError("No module named 'x'"), False),
        (OSError(2, "No such file or directory"), False),
        (SystemError("error return without exception set"), False),
    ],
    ids=str,
)
def test_what_a_lack_of_memory_looks_like(error: Exception, is_one: bool) -> None:
    assert is_shortage(error) == is_one
