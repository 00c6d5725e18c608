"""`forcereg data`: what the three subcommands print and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from forcereg.commands.data import command
from forcereg.errors import ForceregError


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.mark.parametrize("name", ["mnist", "digits", "cifar10"])
def test_help_has_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    forcereg data {name} " in result.output


def test_digits_says_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = run("digits", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"wrote {tmp_path / 'mnist_train_lmdb'}: 1,497 records of 1x28x28",
        f"wrote {tmp_path / 'mnist_test_lmdb'}: 300 records of 1x28x28",
    ]


def test_force_is_needed_to_replace(tmp_path: Path) -> None:
    def convert(*options: str) -> Result:
        return run("cifar10", tmp_path / "src", tmp_path / "out", *options)

    record = np.zeros(3073, np.uint8).tobytes()
    (tmp_path / "src").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / "src" / f"{name}.bin").write_bytes(record)
    assert convert().exit_code == 0
    assert isinstance(convert().exception, ForceregError)
    assert convert("-f").exit_code == 0


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = run("mnist", tmp_path / "nowhere", tmp_path / "out")
    assert isinstance(result.exception, ForceregError)
    assert "nowhere: no train-images-idx3-ubyte" in str(result.exception)
