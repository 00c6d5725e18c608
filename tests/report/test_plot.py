"""`forcereg plot`: which curve goes where, and files that are what their names say."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from forcereg.report.curves import Run
from forcereg.report.plot import chosen, panel_of
from tests.conftest import RunCli
from tests.report.test_curves import CAFFE


@pytest.mark.parametrize(
    ("curve", "panel"),
    [
        ("train loss", "loss"),
        ("test #1 total loss", "loss"),
        ("test accuracy", "score"),
        ("test top-5", "score"),
        ("test rank", "score"),
        ("lr", "learning rate"),
        ("conv1 rank", "rank"),
        ("conv1 cosine", "cosine"),
        ("conv1 ratio", "force ratio"),
    ],
)
def test_panel_of(curve: str, panel: str) -> None:
    assert panel_of(curve) == panel


def test_outputs_in_training_come_only_where_nothing_else_would() -> None:
    run = Run("r")
    for name in ("train loss", "train output loss", "train output accuracy", "lr"):
        run.add(name, 0, 1.0)
    assert chosen(run) == {"loss": ["train loss"], "score": ["train output accuracy"], "learning rate": ["lr"]}
    run.add("test accuracy", 0, 1.0)
    assert chosen(run)["score"] == ["test accuracy"]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with two logs of the same name in different folders."""
    for name in ("plain", "force"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train<1>.log").write_text(CAFFE)
    return tmp_path


def test_pictures_of_one_and_several_runs(logs: Path, run_cli: RunCli) -> None:
    both = ["plain/train<1>.log", "force/train<1>.log"]
    for files, out in ((both[:1], "one.png"), (both, "two.html"), (both, "two.svg")):
        done = run_cli("plot", *files, "-o", out, cwd=logs)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    with Image.open(logs / "one.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert ElementTree.parse(logs / "two.svg").getroot().tag.endswith("svg")
    html = (logs / "two.html").read_text()
    assert html.count("<svg") == 1 and "plain/train&lt;1&gt;.log" in html and "<td>test #1 accuracy</td>" in html


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("plain/train<1>.log", "-o", "out.bmp"), 1, "out.bmp: expected a name that ends in .png, .svg, .pdf, .html"),
        (("none.log", "-o", "out.png"), 1, "none.log: cannot be read"),
        (("plain/train<1>.log",), 2, "Missing option '--out'"),
    ],
)
def test_errors(args: tuple[str, ...], code: int, says: str, logs: Path, run_cli: RunCli) -> None:
    done = run_cli("plot", *args, cwd=logs)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert not list(logs.glob("out.*"))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from forcereg.errors import ForceregError
    from forcereg.report.plot import draw

    run = Run("r")
    run.add("lr", 0, 1.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ForceregError, match=r'pip install "forcereg\[plot\]"'):
        draw([run], "png")
