"""Scripts that import caffe, run unchanged: as `forcereg python`, as `python -m forcereg.pycaffe`, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forcereg
from forcereg import pycaffe
from forcereg.errors import ForceregError
from forcereg.pycaffe import python2
from forcereg.pycaffe.launch import NAMES, install, lent, main
from tests.conftest import TOP, RunCli
from tests.nursery import Nursery

Done = subprocess.CompletedProcess[str]
Launch = Callable[..., Done]
Inside = Callable[[str], tuple[int, str]]


COMMAND, MODULE = ("-m", "forcereg", "python"), ("-m", "forcereg.pycaffe")


@pytest.fixture
def launch(nursery: Nursery, tmp_path: Path) -> Launch:
    """`launch(source, *args)`: a script of this text, in a folder that isn't the working directory."""

    def run(source: str, *args: str, by: tuple[str, ...] = COMMAND) -> Done:
        folder = tmp_path / "of script"
        folder.mkdir(exist_ok=True)
        script = folder / "script.py"
        script.write_text(source)
        return nursery.run(*by, str(script), *args, cwd=tmp_path)

    return run


IMPORTS = """
import os, sys
import caffe, caffe.draw, caffe.io
import caffe.coord_map as maps
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
from caffe.coord_map import crop
import caffe.proto.caffe_pb2 as pb
import forcereg.pycaffe
assert caffe is forcereg.pycaffe and pb is caffe_pb2 is caffe.proto.caffe_pb2 and maps.crop is crop
assert sys.modules["caffe.io"] is caffe.io is forcereg.pycaffe.io and caffe.TRAIN == pb.TRAIN
"""


OLD = """
import cPickle, Queue, ConfigParser, StringIO, urllib2, numpy as np
from cStringIO import StringIO as Fast
assert list(xrange(2)) == [0, 1] and unicode is str and reduce(lambda a, b: a + b, [1, 2]) == 3 and long(3) == 3
assert unichr(65) == "A" and isinstance("", basestring) and cPickle.loads(cPickle.dumps(1)) == 1 and urllib2.urlopen
assert StringIO.StringIO("x").read() == "x" and Fast(b"x").read() == b"x" and Queue.Queue and ConfigParser.ConfigParser
assert np.float is float and np.int is int and np.fromstring(b"ab", dtype=np.uint8).tolist() == [97, 98]
assert np.fromstring("1 2", dtype=int, sep=" ").tolist() == [1, 2] and raw_input and reload and file
try:
    import yaml
except ImportError:
    pass
else:
    assert yaml.load("'batch_size': 3") == yaml.load("{batch_size: 3}", Loader=yaml.SafeLoader) == {"batch_size": 3}
"""


def test_imports_of_every_form_and_names_of_python_2(launch: Launch) -> None:
    done = launch(
        IMPORTS + OLD + "print('fine', caffe.__version__, P.Pooling.AVE, L.ReLU(L.Input()).to_proto().layer[1].name)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine 1.0.0 1 ReLU1\n", "")


LOOK = """
import __main__, os, pickle, sys
import neighbour
class Mine: pass
assert pickle.loads(pickle.dumps(Mine())).__class__ is Mine is __main__.Mine
print(__name__, os.path.basename(__file__), sys.argv[1:], os.path.basename(sys.path[0]), neighbour.here)
assert sys.argv[0] == __file__ and __file__.endswith("script.py")
assert os.getcwd() not in sys.path and "" not in sys.path
"""


@pytest.mark.parametrize("by", [pytest.param(COMMAND, id="command"), pytest.param(MODULE, id="module")])
def test_a_script_finds_what_python_gives_it(by: tuple[str, ...], launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "of script").mkdir()
    (tmp_path / "of script" / "neighbour.py").write_text("here = 'beside'")
    done = launch(LOOK, "--help", "-x", "--debug", "a b", by=by)
    assert done.stderr == "" and done.stdout == (
        "__main__ script.py ['--help', '-x', '--debug', 'a b'] of script beside\n"
    )


def test_an_exit_code_and_what_runs_at_exit(launch: Launch) -> None:
    done = launch("import atexit, caffe, sys; atexit.register(print, 'bye'); sys.exit(7)")
    assert (done.returncode, done.stdout, done.stderr) == (7, "bye\n", "")


def test_pythonpath_counts_as_it_is_given(nursery: Nursery, tmp_path: Path) -> None:
    """forcereg itself looks for nothing in the working directory."""
    (tmp_path / "here.py").write_text("found = 1")
    (tmp_path / "of script").mkdir()
    (tmp_path / "of script" / "script.py").write_text(
        "import os, here; print(here.found, os.environ['PYTHONPATH'][:2])"
    )
    given = {"PYTHONPATH": os.pathsep.join((".", str(TOP)))}
    done = nursery.run("-m", "forcereg", "python", "of script/script.py", cwd=tmp_path, env=given)
    assert (done.stdout, done.stderr) == (f"1 .{os.pathsep}\n", "")


def test_no_such_script(run_cli: RunCli, nursery: Nursery, tmp_path: Path) -> None:
    done = run_cli("python", "none.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "forcereg: none.py: No such file or directory; expected a Python file\n"
    done = nursery.run("-m", "forcereg.pycaffe", cwd=tmp_path)
    assert done.returncode == 2 and "SCRIPT" in done.stderr
    done = nursery.run("-m", "forcereg.pycaffe", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "SCRIPT" in done.stdout


# -- in this process


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """`inside(source)`: exit code and standard error of a script of this text, run here, without names of Python 2."""
    monkeypatch.setattr(python2, "install", lambda: None)

    def run(source: str) -> tuple[int, str]:
        script = tmp_path / "script.py"
        script.write_text(source)
        with lent():
            return main(str(script)), capsys.readouterr().err

    return run


def test_a_traceback_is_the_script_s(inside: Inside) -> None:
    code, err = inside("import caffe\ndef inner():\n    return {}['x']\ninner()\n")
    lines = err.splitlines()
    assert (
        code == 1 and lines[0] == "Traceback (most recent call last):" and 'script.py", line 4, in <module>' in lines[1]
    )
    assert lines[-1] == "KeyError: 'x'" and "launch.py" not in err


def test_a_syntax_error_is_python_s(inside: Inside) -> None:
    code, err = inside("print 'hello'")
    assert code == 1 and 'script.py", line 1' in err and "launch.py" not in err
    assert err.splitlines()[-1].startswith("SyntaxError: Missing parentheses")


def test_forcereg_s_own_errors_are_exceptions(inside: Inside) -> None:
    code, err = inside("import forcereg\nforcereg.load_net('none.prototxt')")
    assert code == 1 and err.startswith("Traceback") and "none.prototxt: no such file" in err.splitlines()[-1]


def test_interrupted(inside: Inside) -> None:
    code, err = inside("raise KeyboardInterrupt")
    assert code == 130 and err.splitlines()[-1] == "KeyboardInterrupt"


def test_names_of_python_2_are_the_launcher_s_alone(inside: Inside) -> None:
    code, err = inside("import caffe, caffe.io; xrange")
    assert code == 1 and "NameError: name 'xrange' is not defined" in err


def test_installed_once() -> None:
    with lent():
        assert install() is install() is pycaffe
        assert all(sys.modules[f"caffe.{name}"] is sys.modules[f"forcereg.pycaffe.{name}"] for name in NAMES)
    assert "caffe" not in sys.modules and "caffe.io" not in sys.modules


def test_another_caffe_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        __file__ = "/usr/lib/caffe.py"
        Net = None

    monkeypatch.setitem(sys.modules, "caffe", Other())  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"imported already, from /usr/lib/caffe\.py"):
        install()
    with pytest.raises(ImportError):
        forcereg.run_script(__file__)
    assert isinstance(sys.modules["caffe"], Other)


def test_a_call_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = sys.path.copy(), sys.argv, sys.modules["__main__"]
    script = tmp_path / "script.py"
    script.write_text("import caffe, sys; sys.exit(sys.argv[1])")
    with pytest.raises(SystemExit, match="seven"):
        forcereg.run_script(script, ["seven"])
    assert (sys.path, sys.argv, sys.modules["__main__"]) == before and "caffe" not in sys.modules
    with pytest.raises(ForceregError, match="expected a Python file"):
        forcereg.run_script(tmp_path)
