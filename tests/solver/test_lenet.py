"""The README's LeNet on MNIST from Caffe's own initial weights: losses, weights and scores follow Caffe's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.idx import convert_mnist
from forcereg.solver.loop import Solver
from tests.golden_cases import Case, golden_cases


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
    (mnist_lmdbs / "examples/mnist/lenet_train_test_force.prototxt").write_text(case.attrs["net"])
    path = mnist_lmdbs / "solver.prototxt"
    path.write_text(case.attrs["solver"])
    solver = Solver(path, device=device, observers=[lambda event: None])
    with torch.no_grad():
        for name, values in case.tree("params_init").items():
            layer, index = name.rsplit("/", 1)
            solver.net.params[layer][int(index)].copy_(torch.from_numpy(values))
    losses = []
    for iteration in range(1, 101):
        losses.append(float(solver.step(1)))
        if iteration in (1, 20, 100):
            check_params(case, solver, iteration)
    expected = case.load("loss")
    np.testing.assert_allclose(losses[:20], expected[:20], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses[20:], expected[20:], rtol=0, atol=1e-3 if device == "cpu" else 6e-3)
    score = solver.test(0)
    assert score.mean("accuracy") == pytest.approx(float(case.load("test_accuracy")), abs=0.003)
    assert score.mean("loss") == pytest.approx(float(case.load("test_loss")), abs=0.01)


def check_params(case: Case, solver: Solver, iteration: int) -> None:
    early = iteration <= 20
    folder = f"iter_{iteration:04d}"
    for name, blobs in solver.net.params.items():
        for index, blob in enumerate(blobs):
            norm = float(case.load(f"{folder}/norms/{name}/{index}"))
            assert float(blob.detach().double().norm()) == pytest.approx(norm, rel=1e-5 if early else 5e-3)
    for name, values in case.tree(f"{folder}/params").items():
        layer, index = name.rsplit("/", 1)
        found = solver.net.params[layer][int(index)].detach().cpu().numpy()
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 if early else 2e-3, err_msg=name)
