"""scripts/bench/gpu.py and its baselines: the same nets on both sides, and a command that needs five packages only."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from bench import baselines

from forcereg.net.load import load_net, shape_net
from forcereg.schema.text import read_net, read_solver
from forcereg.system.shipped import configs_dir
from tests.golden_files import BUNDLED

TOP = Path(__file__).resolve().parents[2]
PLANS = pytest.mark.parametrize("name", baselines.PLANS)
SMALL = pytest.mark.parametrize("name", ["lenet", "cifar10_full", "resnet20"])

FIVE = "torch", "numpy", "h5py", "protobuf", "click"
RUN = """import runpy, sys
_, packages, *sys.argv = sys.argv
sys.path.append(packages)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RUN_TESTS = """import sys
_, packages, *arguments = sys.argv
sys.path.append(packages)
import pytest
sys.exit(pytest.main(arguments))
"""
NAMED = [
    *(f"tests/solver/test_{name}.py" for name in ("graph_cuda", "lenet")),
    *(f"tests/data/test_{name}.py" for name in ("stream", "buffers", "image_data", "window_data")),
    "tests/test_timing.py",
]
"""Where scripts for a machine with a GPU look for its tests: these files don't move."""
WANTS_GPU = re.compile(r"skipif\(not torch\.cuda\.is_available")


def shipped(name: str) -> Any:
    """The net that the plan's solver trains, without memory."""
    param = read_solver(configs_dir() / baselines.PLANS[name].solver).message
    net = read_net(configs_dir() / param.net).message
    plan = baselines.PLANS[name]
    return shape_net(net, phase="TRAIN", input_shapes={"data": (plan.batch, *plan.shape), "label": (plan.batch,)})


@PLANS
def test_the_plain_nets_are_the_shipped_ones(name: str) -> None:
    """The same sizes, blob by blob, but for BatchNorm, whose scale and shift are a layer of their own in Caffe."""
    ours = sorted(one.blob.numel() for one in shipped(name).learnable if one.lr_mult)
    plain = sorted(blob.numel() for blob in baselines.PLANS[name].net().parameters())
    assert plain == ours


@SMALL
def test_the_plain_nets_compute_what_the_shipped_ones_do(name: str) -> None:
    """With the same weights; both sides list them in the order of the layers, shortcuts behind their blocks."""
    plan = baselines.PLANS[name]
    deploy = {"lenet": "mnist/lenet", "cifar10_full": "cifar10/cifar10_full", "resnet20": "cifar10/cifar10_resnet20"}
    net = load_net(configs_dir() / f"examples/{deploy[name]}.prototxt", seed=3, input_shapes={"data": (4, *plan.shape)})
    hand = plan.net().eval()
    blobs = [blob for one in net.params.values() for blob in one if isinstance(blob, torch.nn.Parameter)]
    images, _ = plan.data(4, "cpu")
    with torch.no_grad():
        for index, blob in enumerate(net.buffers()):  # BatchNorm's mean, variance and their factor
            blob.fill_(index % 3 > 0)
        for blob, value in zip(hand.parameters(), blobs, strict=True):
            value.normal_(0, 0.1)
            blob.copy_(value)
        expected = net(data=images)["prob"].reshape(4, -1)
        assert expected.std() > 1e-3
        torch.testing.assert_close(hand(images).softmax(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", baselines.LAYOUTS)
@SMALL
def test_the_plain_loop_learns(name: str, layout: str) -> None:
    plan = baselines.PLANS[name]
    torch.manual_seed(0)
    images, labels = plan.data(20, "cpu")
    net = plan.net()
    before = [blob.detach().clone() for blob in net.parameters()]
    options = {"lr": 0.01, "weight_decay": 0.0}
    run = baselines.loop(net, images, labels, 10, baselines.LAYOUTS[layout], "cpu", **options)
    first = baselines.loss(net(images), labels).item()
    run(30)
    assert baselines.loss(net(images), labels).item() < first
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_batches_are_slices_and_begin_again() -> None:
    images, labels = torch.arange(10.0), torch.arange(10)
    batches = baselines.slices(images, labels, 4)
    found = [next(batches)[1].tolist() for _ in range(3)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert next(batches)[0].data_ptr() == images[4:].data_ptr()


def test_auxiliary_losses_count_a_third() -> None:
    out, labels = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2])
    once = baselines.loss(out, labels)
    torch.testing.assert_close(baselines.loss((out, out, out), labels), 1.6 * once)


def test_too_few_images_are_said() -> None:
    plan = baselines.PLANS["lenet"]
    with pytest.raises(ValueError, match="3 images are less than one batch of 64"):
        baselines.plan_loop(plan, *plan.data(3, "cpu"), torch.contiguous_format)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an unpacked checkout holds, nowhere near the installed package."""
    folder = tmp_path_factory.mktemp("unpacked") / "forcereg"
    for name in ("forcereg", "configs", "scripts", "tests"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", folder)
    return folder


def needed(name: str) -> set[str]:
    """The package and all that it requires itself."""
    try:
        requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # for another system
        return set()
    found = (re.match(r"[\w.-]+", one) for one in requires if "extra ==" not in one)
    return {name}.union(*(needed(one[0]) for one in found if one))


def packages(folder: Path, *names: str) -> Path:
    """A folder of these packages, and what they require."""
    for name in set().union(*map(needed, names)):
        installed = metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(installed.locate_file(top)))
    return folder


@pytest.fixture(scope="module")
def five_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: the five, and what they require."""
    return packages(tmp_path_factory.mktemp("packages"), *FIVE)


@pytest.fixture(scope="module")
def with_pytest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: the five, pytest, and what they require; no lmdb, plyvel, Pillow and hypothesis."""
    return packages(tmp_path_factory.mktemp("packages"), *FIVE, "pytest")


Gpu = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, Any]]]


@pytest.fixture
def gpu(checkout: Path, five_packages: Path, tmp_path: Path) -> Gpu:
    """`gpu("lenet", ...)`: the command on the CPU with those packages only, and its JSON."""

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        script, out = str(checkout / "scripts/bench/gpu.py"), tmp_path / "figures.json"
        # -I and -S: Python's own modules and these packages are all that is on the path
        command = [sys.executable, "-I", "-S", "-c", RUN, str(five_packages), script]
        command += ["--device", "cpu", "--quick", "--json", str(out), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done, json.loads(out.read_text()) if out.exists() else {}

    return run


def test_five_packages_and_an_unpacked_checkout_do(gpu: Gpu) -> None:
    done, found = gpu("run", "lenet", "resnet20", "golden")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found["sections"]) == ["run", "lenet", "resnet20", "golden"]
    assert [one["tests"] for one in found["sections"]["run"]["figures"]["runs"]] == [3, 3]
    assert "made images in memory" in done.stdout
    for name in ("lenet", "resnet20"):
        figures = found["sections"][name]["figures"]
        assert list(figures) == ["float32", "TF32", "bf16"]
        by_name = figures["float32"]["median_s"]
        assert {"plain, contiguous", "plain, channels_last", "forcereg", "forcereg, no graph"} <= set(by_name)
        assert "forcereg, no force" in by_name
        assert all(seconds > 0 for seconds in by_name.values())
        assert f"\n{name}, batch 8" in done.stdout
    counts = found["sections"]["golden"]["figures"]["counts"]
    assert {"layers", "force", "solver"} <= set(counts) and all(bad == rest == 0 for _, bad, rest in counts.values())
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["device"] == "cpu"
    assert "lenet: >= 5x the better plain loop" in done.stdout


def pytest_there(checkout: Path, there: Path, *arguments: str) -> str:
    """What pytest prints of the tests for CUDA, in a process with those packages only; it must end well."""
    command = [sys.executable, "-I", "-S", "-c", RUN_TESTS, str(there), "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run([*command, "-k", "cuda or gpu"], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_tests_that_want_a_gpu_are_collected_with_those_and_pytest(checkout: Path, with_pytest: Path) -> None:
    """What needs more packages is skipped when it runs."""
    files = [str(path) for path in (checkout / "tests").rglob("test_*.py") if WANTS_GPU.search(path.read_text())]
    assert len(files) > 5
    pytest_there(checkout, with_pytest, *files)


def test_files_that_scripts_name_hold_tests_for_a_gpu(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With what such a machine has beside: no lmdb and plyvel."""
    there = packages(tmp_path_factory.mktemp("packages"), *FIVE, "pytest", "hypothesis", "matplotlib")
    collected = pytest_there(checkout, there, "--collect-only", *NAMED).splitlines()
    assert {line.split("::")[0] for line in collected if "::" in line} == set(NAMED)


def test_sections_are_told_where_there_is_little_else(checkout: Path, five_packages: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", RUN, str(five_packages), "scripts/bench/gpu.py", "--help"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "resnet20" in done.stdout, done.stdout + done.stderr


@pytest.mark.long
def test_auxiliary_classifiers_and_crops_run_too(gpu: Gpu) -> None:
    done, found = gpu("googlenet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found["sections"]["googlenet"]["figures"]) == ["float32", "TF32", "bf16"]
    assert "googlenet: images/s >= 1x the channels_last loop" in done.stdout


def test_a_section_that_fails_leaves_the_others_alone(checkout: Path, gpu: Gpu) -> None:
    broken, golden = checkout / "configs/examples/cifar10/cifar10_full_force_solver.prototxt", checkout / "tests/golden"
    kept = broken.read_text()
    try:
        broken.write_text("nonsense")
        golden.rename(checkout / "elsewhere")
        done, found = gpu("lenet", "cifar10_full", "golden")
    finally:
        broken.write_text(kept)
        (checkout / "elsewhere").rename(golden)
    assert done.returncode == 1
    assert "lenet, batch 8" in done.stdout and "Traceback" not in done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "failed" in line)
    assert line.startswith("cifar10_full: failed: ForceregError: ")
    assert "Traceback" in found["sections"]["cifar10_full"]["traceback"]
    assert [found["sections"][name]["traceback"] for name in ("lenet", "golden")] == [None, None]
    assert found["sections"]["golden"]["lines"] == [f"golden cases left out: no {golden}"]


def test_a_wrong_number_fails_and_is_named(checkout: Path, gpu: Gpu) -> None:
    copied = checkout / "tests/golden" / "solver.h5"
    assert copied.read_bytes() == (BUNDLED / "solver.h5").read_bytes()
    with h5py.File(copied, "r+") as file:
        for case in file.values():
            case["loss"][...] = case["loss"][()] + 1
    try:
        done, found = gpu("golden")
    finally:
        shutil.copy(BUNDLED / "solver.h5", copied)
    assert done.returncode == 1
    failures = found["sections"]["golden"]["figures"]["failures"]
    assert failures and all(
        name.startswith("solver/") and "loss of iteration 0" in why for name, why in failures.items()
    )
    assert f"  failed: {next(iter(failures))}: " in done.stdout


def test_no_time_is_said(gpu: Gpu) -> None:
    done, found = gpu("lenet", "--minutes", "-1")
    assert done.returncode == 1
    assert found["sections"]["lenet"]["lines"] == ["lenet: failed: no time left; give more --minutes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "scripts/bench/gpu.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("machine: failed: ") and line.endswith("(--device cpu --quick needs none)")


def test_an_unknown_section_is_refused() -> None:
    command = [sys.executable, str(TOP / "scripts/bench/gpu.py"), "lennet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "unknown section 'lennet'; choose from run, lenet, " in done.stderr
