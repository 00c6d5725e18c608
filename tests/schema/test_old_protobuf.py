"""The parser's own tests again, on the oldest protobuf supported and on the runtime written in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
OLD = Path(os.environ.get("FORCEREG_OLD_PROTOBUF", TOP / ".protobuf-4.25"))

TESTS = ("text", "upgrade", "diagnose")

# the import comes before pytest: on new Pythons protobuf 4.25 itself warns when it is first imported
CODE = """
import sys
import forcereg.schema.text
from google.protobuf import __version__
from google.protobuf.internal import api_implementation
print(f"protobuf {__version__} {api_implementation.Type()}")
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_tests(first_on_path: list[Path], implementation: str) -> str:
    paths = os.pathsep.join(map(str, [*first_on_path, TOP]))
    arguments = ["-q", "-p", "no:cacheprovider", *(HERE / f"test_{name}.py" for name in TESTS)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": paths, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_parser_on_protobuf_4_25(implementation: str) -> None:
    if not OLD.is_dir():
        pytest.skip(f"no {OLD}: pip install --target {OLD} 'protobuf>=4.25,<4.26' (scripts/test.sh does)")
    output = run_tests([OLD], implementation)
    first = output.splitlines()[0].split()
    assert first[1].startswith("4.25.") and first[2] == implementation, first


def test_parser_on_the_python_runtime() -> None:
    output = run_tests([], "python")
    assert output.splitlines()[0].endswith(" python")
