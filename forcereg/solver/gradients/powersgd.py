"""Gradients as products of two thin matrices, PowerSGD (Vogels et al., NeurIPS 2019), by torch's own hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as torchs

from forcereg.net.module import Net
from forcereg.registry import gradient_scheme
from forcereg.solver.gradients.base import Bucket, Message, Scheme, Sent, matrix_of

SAVED = {"error": "error_dict", "p": "p_memory_dict", "q": "q_memory_dict"}
"""What a state has of each bucket, and torch's name for it."""


@gradient_scheme("powersgd")
class PowerSGD(Scheme):
    """Float32 before iteration powersgd_start; then factors of a weight's gradient as a matrix of `shape[0]` rows.

    What a rank's gradients lose is added to its next ones. Vectors, and what factors would make less than half as
    large, are sent whole.
    """

    overflows = False
    _state: Any = None  # torch's, once there is a net
    _shapes: Sequence[torch.Size] = ()

    def attach(self, net: Net) -> None:
        self._device = next((one.device for one in net.parameters()), None)
        before, self._shapes = self._shapes, [one.shape for one in net.parameters()]
        if self._state is not None and self._shapes == before:
            return
        began = 0 if self._state is None else self._state.iter
        # what was lost of weights of other shapes is lost
        self._state = torchs.PowerSGDState(self.wire.group, self.settings.powersgd_rank)
        # torch refuses 0 and 1, as DDP may make its buckets anew: not here
        self._state.start_powerSGD_iter = self.settings.powersgd_start
        self._state.iter = began

    def hook(self, bucket: Bucket) -> Sent:
        error = self._state.error_dict.get(bucket.number)
        if error is not None and error.numel() != bucket.flat.numel():  # another torch makes other buckets
            for name in SAVED.values():
                getattr(self._state, name).pop(bucket.number, None)
        sent: Sent = torchs.powerSGD_hook(self._state, bucket)  # type: ignore[arg-type]
        # it sends from within callbacks: those of two buckets could come in another order on another rank
        sent.wait()
        return sent

    def messages(self, weights: Sequence[Tensor], ranks: int) -> list[Message]:
        whole = thin_rows = thin_columns = 0
        for rows, columns in map(matrix_of, weights):
            rank = min(rows, columns, self.settings.powersgd_rank)
            if torchs._should_compress(rows, columns, rank, self._state.min_compression_rate)[0]:
                thin_rows, thin_columns = thin_rows + rows * rank, thin_columns + columns * rank
            else:
                whole += rows * columns
        return [Message("reduced", 4 * count) for count in (whole, thin_rows, thin_columns)]

    def state_dict(self) -> dict[str, Any]:
        kept = {
            key: {str(index): one.cpu().numpy() for index, one in getattr(self._state, name).items()}
            for key, name in SAVED.items()
        }
        return {"iteration": self._state.iter, **{key: found for key, found in kept.items() if found}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state.iter = state.get("iteration", 0)
        for key, name in SAVED.items():
            found = {int(i): torch.from_numpy(np.array(one)).to(self._device) for i, one in state.get(key, {}).items()}
            setattr(self._state, name, found)
