"""The recorded Caffe numbers, compared on any device by the code that the tests use; needs no pytest."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_speed import Goal, Job, Section
from made import Made, serve

if TYPE_CHECKING:
    Case = Any

TOP = Path(__file__).resolve().parents[2]
Check = Callable[[Path], None]


def tests() -> tuple[Any, Any]:
    """The tests' golden_files and golden_checks, also where another package is called `tests`."""
    if not hasattr(sys.modules.get("tests"), "golden_files"):
        package = types.ModuleType("tests")
        package.__path__ = [str(TOP / "tests")]
        sys.modules["tests"] = package
    from tests import golden_checks, golden_files

    return golden_files, golden_checks


def mnist(folder: Path) -> dict[str, Made]:
    """MNIST's two sets from its four idx files."""
    from forcereg.data.idx import IMAGES_MAGIC, LABELS_MAGIC, read_idx

    sets = {}
    for stem, name in (("train", "mnist_train_lmdb"), ("t10k", "mnist_test_lmdb")):
        images = read_idx(folder, f"{stem}-images", IMAGES_MAGIC)[:, None]
        sets[name] = Made(name, images, read_idx(folder, f"{stem}-labels", LABELS_MAGIC))
    return sets


def checks(job: Job) -> Iterator[tuple[str, str, Check]]:
    """(kind, case, what compares it in an empty folder) of all cases that a device computes."""
    files, checks = tests()

    def cases(kind: str) -> list[Case]:
        return files.bundled(kind) + (files.singles(kind, job.golden) if job.golden else [])

    device = job.device

    def lenet(case: Case, folder: Path) -> None:
        (folder / "examples/mnist").mkdir(parents=True)
        checks.check_lenet(case, folder, device)

    def layer(case: Case, folder: Path) -> None:
        checks.check_layer(case, device)

    def squeezed(case: Case, folder: Path) -> None:
        checks.check_squeezed(case, device)

    for case in cases("layers"):
        yield "layers", case.id, partial(layer, case)
    for kind, check in (("force", checks.check_force), ("solver", checks.check_trajectory)):
        for case in filter(checks.runs_here, cases(kind)):
            yield kind, case.id, partial(check, case, device=device)
    for case in cases("snapshots"):
        for end, form in ((".h5", "HDF5"), ("", "binary")):
            yield "snapshots", f"{case.id}, {form}", partial(checks.check_resume, case, end=end, device=device)
    for case in cases("sparse"):
        if case.attrs["kind"] == "forward":
            yield "sparse", case.id, partial(squeezed, case)
        else:
            yield "sparse", case.id, partial(checks.check_sparse, case, device=device)
    if job.mnist:
        serve(mnist(job.mnist))
        for case in cases("lenet"):
            yield "lenet", case.id, partial(lenet, case)


def golden_section(name: str, job: Job) -> Section:
    """Passed and failed cases of each kind; `failed` if there is one."""
    if not (TOP / "tests/golden").is_dir():
        return Section([f"golden cases left out: no {TOP / 'tests/golden'}"])
    section, counts = Section(), dict[str, list[int]]()
    todo = list(checks(job))[:: 12 if job.quick else 1]
    failures: dict[str, str] = {}
    for kind, case, check in todo:
        passed = counts.setdefault(kind, [0, 0, 0])
        if job.left() < 0:
            passed[2] += 1
            continue
        why = failure(check)
        passed[0 if why is None else 1] += 1
        if why is not None:
            failures[f"{kind}/{case}"] = why
    section.lines.append(f"{'golden cases of Caffe':28}{'passed':>8}{'failed':>8}{'not run':>9}")
    section.lines += [f"{kind:28}{good:8}{bad:8}{rest:9}" for kind, (good, bad, rest) in counts.items()]
    section.lines += [f"  failed: {case}: {why}" for case, why in failures.items()]
    if not job.mnist:
        section.lines.append("  lenet left out: no --mnist folder")
    section.figures = {"counts": counts, "failures": failures}
    good, ran = (sum(column) for column in zip(*((one[0], one[0] + one[1]) for one in counts.values()), strict=True))
    section.goals.append(Goal("Caffe's recorded numbers on this device", f"{good} of {len(todo)}", good == len(todo)))
    section.failed = good < ran
    return section


def failure(check: Check) -> str | None:
    """One line of what went wrong, in a folder of its own; None if nothing did."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(Path(folder).resolve())
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None
