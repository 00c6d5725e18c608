"""forcereg.device: what a device is called, and what float32 means on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from forcereg.device import prepare

FLAGS = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
)


@pytest.fixture
def no_flags() -> Iterator[None]:
    """All three off, and in the end as they were."""
    kept = [getattr(*flag) for flag in FLAGS]
    for flag in FLAGS:
        setattr(*flag, False)
    yield
    for flag, value in zip(FLAGS, kept, strict=True):
        setattr(*flag, value)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
def test_prepare_takes_a_gpu_with_or_without_its_number(
    name: str, tf32: bool, no_flags: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.cuda.set_device refuses "cuda", which users write for the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    prepare(torch.device(name), tf32)
    assert chosen == [torch.device(name)] * (":" in name)
    assert [getattr(*flag) for flag in FLAGS] == [tf32, tf32, True]
