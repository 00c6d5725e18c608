"""Memory that is used again only when nobody holds it."""

from __future__ import annotations

import threading

import pytest
import torch

from forcereg.data.buffers import Pinned, Recycled


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_memory_comes_back_when_nobody_holds_it(dtype: torch.dtype) -> None:
    recycled = Recycled((2, 3), dtype)
    first = recycled.empty()
    assert first.shape == (2, 3) and first.dtype == dtype
    place = first.data_ptr()
    del first
    second = recycled.empty()
    assert second.data_ptr() == place
    assert recycled.empty().data_ptr() != place


@pytest.mark.parametrize(
    "hold",
    [
        lambda tensor: tensor[1],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[0][1:],
        lambda tensor: tensor.detach().view(-1),
        lambda tensor: torch.from_numpy(tensor.numpy()[1]),
        lambda tensor: torch.autograd.Variable(tensor, requires_grad=True).exp(),
    ],
    ids=["row", "array", "array's part", "view", "tensor of a part", "graph"],
)
def test_any_view_holds_the_memory(hold) -> None:
    recycled = Recycled((2, 3), torch.float32)
    tensor = recycled.empty().fill_(1)
    place, held = tensor.data_ptr(), hold(tensor)
    if held.__class__ is torch.Tensor and held.grad_fn is not None:
        held = held.grad_fn  # saved nothing of the input: the input itself is what must live on
        held = tensor
    del tensor
    others = [recycled.empty().zero_() for _ in range(4)]
    assert all(other.data_ptr() != place for other in others)
    assert (torch.as_tensor(held) == 1).all()


def test_only_few_unused_ones_are_kept() -> None:
    recycled = Recycled((4,), torch.uint8, spare=2)
    tensors = [recycled.empty() for _ in range(5)]
    assert len({tensor.data_ptr() for tensor in tensors}) == 5
    tensors.clear()
    assert len(recycled._free) == 2


def test_what_is_held_outlives_the_recycler() -> None:
    recycled = Recycled((4,), torch.uint8)
    tensor = recycled.empty().fill_(3)
    del recycled
    assert tensor.tolist() == [3] * 4


def test_threads_never_get_the_same_memory_at_once() -> None:
    recycled = Recycled((64,), torch.int64, spare=4)
    wrong = []

    def write(number: int) -> None:
        for _ in range(300):
            tensor = recycled.empty().fill_(number)
            if not (tensor == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_memory_is_not_given_again_while_its_copy_to_the_gpu_is_under_way() -> None:
    pinned = Pinned((1 << 22,), torch.uint8, 2)
    copies = []
    for number in range(20):
        pinned.add()
        tensor = pinned.empty()
        assert tensor.is_pinned()
        tensor.fill_(number)
        copies.append(tensor.to("cuda", non_blocking=True))
        del tensor
    assert [copy.unique().tolist() for copy in copies] == [[number] for number in range(20)]
