"""The wheel carries all that forcereg needs outside the checkout: schema, configs, every module."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, built from the checkout."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=TOP, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_the_modules_and_configs_only(installed: Path) -> None:
    found = {path.relative_to(installed / "forcereg").as_posix() for path in (installed / "forcereg").rglob("*.*")}
    modules = {path.relative_to(TOP / "forcereg").as_posix() for path in (TOP / "forcereg").rglob("*.py")}
    assert modules <= found
    assert {"schema/caffe.desc", "schema/caffe.proto"} <= found
    assert {path.rsplit(".", 1)[1] for path in found} == {"py", "typed", "desc", "proto", "prototxt", "json"}
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"forcereg"}


def test_wheel_tells_its_license_and_that_it_is_typed(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    told = message_from_string(metadata.read_text(encoding="utf-8"))
    assert (told["License-Expression"], told.get_all("License-File")) == ("BSD-2-Clause", ["LICENSE"])
    assert (metadata.parent / "licenses" / "LICENSE").read_bytes() == (TOP / "LICENSE").read_bytes()
    assert told["Author"] == "forcereg contributors"
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert (installed / "forcereg" / "py.typed").is_file()


def test_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
import forcereg
from forcereg.schema.text import read_net
from forcereg.system.shipped import configs_dir, shipped_configs
nets = [read_net(configs_dir() / file.path) for file in shipped_configs() if file.kind == "net"]
print(forcereg.__file__, len(nets))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(installed / "forcereg" / "__init__.py"), "19"], done.stderr
