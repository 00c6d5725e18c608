"""Gradients in 16 bits, by torch's own hooks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from forcereg.registry import gradient_scheme
from forcereg.solver.gradients.base import Bucket, Message, Scheme, Sent


class _Halved(Scheme):
    def messages(self, weights: Sequence[Tensor], ranks: int) -> list[Message]:
        return [Message("reduced", 2 * sum(one.numel() for one in weights))]


@gradient_scheme("bf16")
class Bfloat16(_Halved):
    """Rounded to bfloat16, whose range is float32's, and summed in it."""

    def hook(self, bucket: Bucket) -> Sent:
        sent: Sent = default_hooks.bf16_compress_hook(self.wire.group, bucket)  # type: ignore[arg-type]
        return sent


@gradient_scheme("fp16")
class Float16(_Halved):
    """Rounded to float16, which ends at 65504 and 6e-8, and summed in it."""

    def hook(self, bucket: Bucket) -> Sent:
        sent: Sent = default_hooks.fp16_compress_hook(self.wire.group, bucket)  # type: ignore[arg-type]
        return sent
