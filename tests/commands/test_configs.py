"""`forcereg configs`: what it lists and where it copies to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forcereg.commands.configs import command
from forcereg.errors import ForceregError
from forcereg.system.shipped import configs_dir, shipped_configs

LENET = "examples/mnist/lenet_force_solver.prototxt"


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_list_has_a_line_per_file() -> None:
    lines = invoke().output.splitlines()
    assert [line.split()[0] for line in lines] == [file.path.as_posix() for file in shipped_configs()]
    (lenet,) = (line for line in lines if line.startswith(LENET))
    assert lenet.split()[1] == "solver"
    assert lenet.endswith("LeNet on MNIST with force regularization: 10,000 iterations of 64 images.")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        pytest.param((), 35, id="all"),
        pytest.param((LENET,), 1, id="one-path"),
        pytest.param(("examples/mnist",), 5, id="folder"),
        pytest.param(("examples/mnist/",), 5, id="folder-slash"),
        pytest.param(("examples",), 15, id="upper-folder"),
        pytest.param(("*resnet20*",), 5, id="wildcard"),
        pytest.param((LENET, "examples/mnist"), 5, id="overlapping"),
    ],
)
def test_copy(patterns: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    result = invoke("copy", tmp_path / "new", *patterns)
    assert result.exit_code == 0
    copied = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert len(copied) == expected == len(result.output.splitlines())
    for path in copied:
        assert path.read_bytes() == (configs_dir() / path.relative_to(tmp_path / "new")).read_bytes()


def test_copy_twice_is_fine_unless_edited(tmp_path: Path) -> None:
    assert invoke("copy", tmp_path, LENET).exit_code == 0
    assert invoke("copy", tmp_path, LENET).exit_code == 0
    (tmp_path / LENET).write_text("base_lr: 1\n")
    refused = invoke("copy", tmp_path)
    assert isinstance(refused.exception, ForceregError)
    assert f"{tmp_path / LENET}: exists and differs" in str(refused.exception)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / LENET]
    assert invoke("copy", tmp_path, LENET, "--force").exit_code == 0
    assert "base_lr: 0.01\n" in (tmp_path / LENET).read_text()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        pytest.param("examples/mnist/lenet_slver.prototxt", 'did you mean "examples/mnist/lenet_', id="typo"),
        pytest.param("zzz", "`forcereg configs` lists them", id="far-off"),
    ],
)
def test_unknown_name(pattern: str, hint: str, tmp_path: Path) -> None:
    result = invoke("copy", tmp_path, pattern)
    assert isinstance(result.exception, ForceregError)
    assert repr(pattern) in str(result.exception) and hint in str(result.exception)


def test_copy_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "examples").write_text("a file where a folder should be")
    result = invoke("copy", tmp_path, LENET)
    assert isinstance(result.exception, ForceregError)
    assert "cannot be written" in str(result.exception)
