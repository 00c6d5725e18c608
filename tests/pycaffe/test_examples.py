"""The examples in the docstrings of caffe's classes run."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import forcereg
import forcereg.pycaffe as caffe
from tests.scratch import prepare


@pytest.mark.parametrize("name", ["Net", "SGDSolver"])
def test_the_docstring_s_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    caffe.init_log(2)
    said: list[str] = []
    (test, *_) = doctest.DocTestFinder(recurse=False).find(getattr(caffe, name), name, globs={"forcereg": forcereg})
    assert test.examples
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
