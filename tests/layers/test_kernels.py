"""Whether batches are normalised by cuDNN on a GPU: a choice by measured time, where such choices are allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forcereg.layers import kernels
from forcereg.layers.kernels import prefers_cudnn
from tests.layers.nets import noise

BLOB: Any = object()


def batch(images: int) -> Any:
    """A batch as if on a GPU."""
    shape = torch.Size((images, 3, 2, 2))
    return SimpleNamespace(
        is_cuda=True, device="cuda:0", dtype=torch.float32, shape=shape, stride=lambda: (12, 4, 2, 1)
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What is measured, by the number of images; cuDNN wins from 8 on. `cudnn.benchmark` is on."""
    found: list[int] = []

    def is_faster(x: Any, *_: object) -> bool:
        found.append(x.shape[0])
        return x.shape[0] >= 8

    monkeypatch.setattr(kernels, "_is_faster", is_faster)
    monkeypatch.setattr(kernels, "_CHOSEN", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield found
    torch.backends.cudnn.benchmark = before


def test_each_kind_of_batch_is_measured_once(measured: list[int]) -> None:
    assert [prefers_cudnn(batch(images), BLOB, BLOB, 1e-5) for images in (4, 8, 4, 8)] == [False, True, False, True]
    assert measured == [4, 8]


def test_nothing_is_measured_where_nothing_may_be_chosen(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, without weights (cuDNN wants them), in a recording, deterministic, or with the choice off."""
    assert not prefers_cudnn(torch.zeros(8, 3, 2, 2), BLOB, BLOB, 1e-5)
    assert not prefers_cudnn(batch(8), BLOB, None, 1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not prefers_cudnn(batch(8), BLOB, BLOB, 1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not prefers_cudnn(batch(8), BLOB, BLOB, 1e-5)
    torch.backends.cudnn.benchmark = False
    assert not prefers_cudnn(batch(8), BLOB, BLOB, 1e-5)
    assert measured == []


class Event:
    """A torch.cuda.Event whose time is the number of runs by then."""

    runs = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.runs

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that can't is never chosen."""
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def run() -> None:
        Event.runs += 1

    def refuse() -> None:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    assert kernels._milliseconds(run) == kernels.RUNS
    assert kernels._milliseconds(refuse) == math.inf


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_what_is_measured_leaves_everything_as_it_was(device: str) -> None:
    """A forward and a backward of the same values by either kernel; what comes of it is thrown away."""
    x = noise(4, 3, 5, 5).float().to(device).requires_grad_()
    weight, bias = (noise(3, seed=seed).float().to(device).requires_grad_() for seed in (1, 2))
    kept = [blob.detach().clone() for blob in (x, weight, bias)]
    with torch.no_grad():
        own, cudnn = (kernels._training_pass(x, weight, bias, 1e-5, on)() for on in (False, True))
    for found, other in zip(own, cudnn, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)
    for blob, before in zip((x, weight, bias), kept, strict=True):
        assert torch.equal(blob, before) and blob.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_statistics_are_caffes_by_either_kernel() -> None:
    """The mean and the unbiased variance."""
    x, one = noise(6, 3, 4, 4).float().cuda(), torch.ones(3, device="cuda")
    for cudnn in (False, True):
        mean, variance = torch.zeros(2, 3, device="cuda")
        torch.batch_norm(x, one, 0 * one, mean, variance, True, 1.0, 1e-5, cudnn)
        flat = x.transpose(0, 1).reshape(3, -1)
        torch.testing.assert_close(mean, flat.mean(1))
        torch.testing.assert_close(variance, flat.var(1))
