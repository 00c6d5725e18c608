"""forcereg.system.device: what a device is called, and what float32 means on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from forcereg.system.device import prepare, side_stream

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


def precisions() -> dict[str, Any]:
    """What float32 means by torch's new switches."""
    backends = torch.backends
    holders = {"all": backends, "matmul": backends.cuda.matmul, "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn}
    return {name: holder.fp32_precision for name, holder in holders.items()}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has the old switches only")
@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
def test_the_old_and_the_new_switches_agree(
    tf32: bool, before: str, no_flags: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was chosen for all backends; torch raises when it reads switches that differ."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with ExitStack() as stack:
        for holder in (torch.backends, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
            stack.callback(setattr, holder, "fp32_precision", holder.fp32_precision)
        torch.backends.fp32_precision = before
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepare(torch.device("cuda:0"), tf32)
        chosen = "tf32" if tf32 else "ieee"
        assert precisions() == {"all": before, "matmul": chosen, "conv": chosen, "rnn": chosen}
        assert [getattr(*flag) for flag in FLAGS] == [tf32, tf32, True]


def test_one_stream_for_a_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many solvers a process makes."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", made.append)
    side_stream.cache_clear()
    for _ in range(3):
        for purpose in ("graphs", "beside"):
            side_stream(torch.device("cuda:1"), purpose)
    assert made == [torch.device("cuda:1")] * 2
    side_stream.cache_clear()
