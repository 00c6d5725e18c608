"""Gradients in two bits: `ternary` between processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import UsageError, did_you_mean
from forcereg.net.module import Net
from forcereg.registry import gradient_scheme
from forcereg.solver.gradients import ternary
from forcereg.solver.gradients.base import Bucket, Dense, Message, Sent, used_here

GATHERED = 8
"""Up to so many ranks each gets all others' packed signs; of more it is less to add them up on the way."""
CARRIERS = ((127, torch.int8), (2048, torch.float16), (1 << 24, torch.float32))
"""The most ranks whose signs add up exactly in a type that backends sum."""
LAST = "last"
_STREAM = 0x7E47  # apart from what else is drawn from a run's seed


def carrier_of(ranks: int) -> torch.dtype:
    """The smallest type in which the signs of so many ranks are added up."""
    return next(dtype for most, dtype in CARRIERS if ranks <= most)


@gradient_scheme("ternary")
class Ternary(Dense):
    """Each tensor's gradient is drawn as -s, 0 or s (see `ternary`), s the largest of all ranks'.

    Dense stay those of `dense_layers` and of fewer values than `min_size`. Draws are each rank's own.
    """

    _generator: torch.Generator | None = None
    _device = torch.device("cpu")
    _drawn = torch.empty(0)

    def attach(self, net: Net) -> None:
        settings = self.settings
        self._dense = {id(blob) for name in _layers(net, settings.dense_layers) for blob in net.params[name]}
        self._dense |= {id(one) for one in net.parameters() if one.numel() < settings.min_size}
        if self._generator is None:
            self._device = next((one.device for one in net.parameters()), self._device)
            seed = np.random.SeedSequence([self.seed, self.wire.rank, _STREAM]).generate_state(1)
            self._generator = torch.Generator(self._device).manual_seed(int(seed[0]))

    def hook(self, bucket: Bucket) -> Sent:
        terse = [id(one) not in self._dense for one in bucket.weights]
        parts = [part.view(-1) for part in bucket.gradients()]
        whole = [part for part, one in zip(parts, terse, strict=True) if not one]
        chosen = [part for part, one in zip(parts, terse, strict=True) if one]
        if not chosen:
            return super().hook(bucket)
        if not whole:
            return self._send(bucket.flat, [len(one) for one in chosen])
        rest, flat = torch.cat(whole).div_(self.wire.size), torch.cat(chosen)
        arriving = self.wire.sum(rest)

        def finish(sent: Sent) -> Tensor:
            arriving.wait()
            for parts, values in ((chosen, sent.value()), (whole, rest)):
                used_here(values)
                torch._foreach_copy_(parts, values.split([len(one) for one in parts]))
            return bucket.flat

        return self._send(flat, [len(one) for one in chosen]).then(finish)

    def _send(self, flat: Tensor, sizes: list[int]) -> Sent:
        """`flat`, gradients of these sizes, becomes their mean, which the future holds."""
        gradients, chances = flat.split(sizes), self._chances(flat)
        bounds = ternary.bounds_of(gradients, self.settings.clip_sigma)
        scalers = ternary.scalers_of(gradients, bounds)
        # waited for at once: what is sent from a callback could come in another order on another rank
        self.wire.most(scalers)
        ternary.draw_(gradients, bounds, scalers, chances.split(sizes))
        sent, sums = self._add_up(ternary.signs_of(flat, chances))

        def take(sent: Sent) -> Tensor:
            sent.value()  # raises what went wrong
            used_here(flat, scalers)
            ternary.mean_(sums(flat).split(sizes), scalers, self.wire.size)
            return flat

        return sent.then(take)

    def _add_up(self, signs: Tensor) -> tuple[Sent, Callable[[Tensor], Tensor]]:
        """Sends signs; once that is done the function writes their sums over ranks, -1 to 1 each, to a tensor."""
        ranks = self.wire.size
        if ranks > GATHERED:
            codes = signs.to(carrier_of(ranks)).sub_(1)
            return self.wire.sum(codes), lambda out: out.copy_(used_here(codes))
        packed = ternary.pack(signs)
        found = packed.new_empty(ranks, len(packed))
        sent = self.wire.gather(packed, list(found))
        return sent, lambda out: out.copy_(ternary.unpack(used_here(found).unbind(), len(out))).sub_(ranks)

    def _chances(self, like: Tensor) -> Tensor:
        """Uniform in [0, 1), in kept memory."""
        if len(self._drawn) < len(like):
            self._drawn = torch.empty_like(like)
        return self._drawn[: len(like)].uniform_(generator=self._generator)

    def messages(self, weights: Sequence[Tensor], ranks: int) -> list[Message]:
        whole = sum(one.nbytes for one in weights if id(one) in self._dense)
        chosen = [one.numel() for one in weights if id(one) not in self._dense]
        found = [Message("reduced", whole)] if whole else []
        if not chosen:
            return found
        packed = Message("gathered", math.ceil(sum(chosen) / ternary.PER_BYTE))
        codes = Message("reduced", sum(chosen) * carrier_of(ranks).itemsize)
        return [*found, Message("reduced", 4 * len(chosen)), packed if ranks <= GATHERED else codes]

    def remarks(self, net: Net, param: Any) -> Iterator[str]:
        weights = [one for one in net.parameters() if one.requires_grad]
        whole = sum(id(one) in self._dense for one in weights)
        text = f"{len(weights) - whole} blobs' gradients are sent in two bits a value"
        yield text + (f", those of {whole} others whole" if whole else "")
        dropouts = [one for one in net.spec.layers if one.type == "Dropout"]
        less = [f"dropout_ratio (it is {one.message.dropout_param.dropout_ratio:g} in {one.name})" for one in dropouts]
        less += [f"weight_decay (it is {param.weight_decay:g})"] if param.weight_decay else []
        if less:
            yield f"their noise regularizes: if the score falls behind that of dense ones, lower {', '.join(less)}"
        if param.clip_gradients >= 0:
            yield "clip_gradients looks at their mean, whose norm the draws enlarge: it acts more often"

    def state_dict(self) -> dict[str, Any]:
        return {} if self._generator is None else {self._device.type: self._generator.get_state().numpy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state.get(self._device.type)
        if saved is not None and self._generator is not None:
            self._generator.set_state(torch.from_numpy(np.array(saved)))


def _layers(net: Net, names: Sequence[str]) -> Iterator[str]:
    """The layers of a net that have weights, by their names. Raises UsageError."""
    known = [name for name, blobs in net.params.items() if any(blob.requires_grad for blob in blobs)]
    for name in names:
        if name not in known and not (name == LAST and known):
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise UsageError(f"--dense-layers has '{name}', but no such layer of the net learns{hint}")
        yield name if name in known else known[-1]
