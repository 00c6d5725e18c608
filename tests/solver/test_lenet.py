"""The README's LeNet on MNIST from Caffe's own initial weights: losses, weights and scores follow Caffe's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from forcereg.data.idx import convert_mnist
from tests.golden_cases import Case, golden_cases
from tests.golden_checks import check_lenet


@pytest.fixture(scope="module")
def mnist_lmdbs(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mnist")
    convert_mnist(mnist_dir, root / "examples" / "mnist")
    return root


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("device", "threads"),
    [
        pytest.param("cpu", 1, id="cpu-1-thread"),
        pytest.param("cpu", 2, id="cpu-2-threads"),
        pytest.param("cuda", 1, id="cuda", marks=NO_CUDA),
    ],
)
@pytest.mark.parametrize("case", golden_cases("lenet"))
def test_hundred_iterations(
    case: Case, device: str, threads: int, mnist_lmdbs: Path, set_threads: Callable[[int], None]
) -> None:
    set_threads(threads)
    check_lenet(case, mnist_lmdbs, device)
