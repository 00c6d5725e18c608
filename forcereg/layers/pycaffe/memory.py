"""A blob's values in two places, as Caffe's SyncedMemory has them: a tensor for layers, a numpy array for people."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]
CPU = torch.device("cpu")


class Memory:
    """Values that layers read and write as a tensor, and people as an array that stays live.

    Where the tensor lies on the CPU in C order both are the same memory. Else (GPU, channels_last) what was written
    last is brought over when the other side looks; an array that somebody still holds is brought up to date behind
    every change. Values that nobody has written are zeros and take no memory.

    `fixed`: the tensor is a weight, whose place others hold, so that values are copied into it.
    """

    __slots__ = ("_flat", "_home", "_late", "_lent", "_owner", "_shape", "_tensor", "device", "dtype", "fixed")

    def __init__(self, shape: Sequence[int] = (), tensor: Tensor | None = None, fixed: bool = False) -> None:
        self.fixed = fixed
        self.dtype = torch.float32 if tensor is None else tensor.dtype
        self.device = CPU if tensor is None else tensor.device
        self._tensor = tensor
        self._shape = tuple(shape) if tensor is None else tuple(tensor.shape)
        self._flat: Tensor | None = None  # all that was reserved for arrays, in one row on the CPU
        self._home = False  # the tensor is the beginning of `_flat`
        self._lent = False  # an array was handed out since the tensor was last looked at
        self._owner: weakref.ref[np.ndarray] | None = None  # what all arrays that were handed out are views of
        self._late: Callable[[], Tensor] | None = None  # gives values that nobody has asked for yet

    def __getstate__(self) -> tuple[Shape, Tensor | None, torch.dtype, torch.device, bool]:
        return self._shape, None if self.untouched else self.read().detach(), self.dtype, self.device, self.fixed

    def __setstate__(self, state: tuple[Shape, Tensor | None, torch.dtype, torch.device, bool]) -> None:
        self._shape, self._tensor, self.dtype, self.device, self.fixed = state
        self._forget()

    # -- for layers

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return self._shape

    @property
    def untouched(self) -> bool:
        """Whether these are still the zeros of the beginning."""
        return self._tensor is None and self._flat is None and self._late is None

    def read(self) -> Tensor:
        """The values as they are now, edits of arrays included."""
        if self._tensor is None:
            return self._begin()
        if self._lent and not self._home:
            self._take_edits()
        return self._tensor

    def put(self, tensor: Tensor) -> None:
        """Makes `tensor` the values; arrays that somebody holds show them."""
        if self._flat is not None:
            tensor = self._shown(tensor)
        self._tensor, self._late = tensor, None
        self._shape = tuple(tensor.shape)

    def later(self, make: Callable[[], Tensor]) -> None:
        """What `make` gives are the values, if anybody asks for them before there are others."""
        if self.is_lent:
            self.put(make())
        else:
            self._forget()
            self._tensor, self._late = None, make

    def replace(self, tensor: Tensor) -> None:
        """Makes `tensor` the values; arrays handed out before keep the old ones."""
        self._forget()
        self._tensor, self._shape, self.dtype = tensor, tuple(tensor.shape), tensor.dtype

    def changed(self) -> None:
        """The tensor was changed in place: arrays that somebody holds follow."""
        if self._flat is not None and not self._home and self._tensor is not None:
            self._shown(self._tensor)

    def move(self, device: torch.device) -> None:
        """From here on the tensor lies on `device`."""
        if device == self.device:
            return
        self.device = device
        if self._tensor is not None:
            self.put(self.read().to(device))

    def add(self, values: Tensor) -> None:
        """Adds to the values, which become `values` where they are zeros: these must be the caller's own."""
        if self.untouched:
            self.put(values)
            return
        mine = self.read()
        if self._home:
            mine.add_(values)
        else:
            self.put(mine + values)

    def zero(self) -> None:
        """Zeros, without a pass over memory unless somebody holds an array."""
        if self.fixed or self.is_lent:
            self.put(torch.zeros_like(self.read()))
        else:
            self._forget()
            self._tensor = None

    def resize(self, shape: Sequence[int]) -> None:
        """Other sizes. Values and arrays stay while the memory reserved so far is enough, else all are zeros."""
        shape = tuple(shape)
        if shape == self._shape:
            return
        count = prod(shape)
        if not self.untouched:
            self.read()
            flat = self._settled()
            if count <= flat.numel():
                self._at_home(flat[:count].view(shape))
                return
        self._forget()
        self._tensor, self._shape = None, shape

    @property
    def is_lent(self) -> bool:
        """Whether somebody holds an array."""
        return self._owner is not None and self._owner() is not None

    def shares(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies in this memory."""
        mine = self._tensor
        return mine is not None and mine.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()

    def adopt(self, tensor: Tensor) -> None:
        """The same values lie in `tensor` now; edits of arrays have been read."""
        self._home, self._tensor, self.device = False, tensor, tensor.device
        self.changed()

    # -- for people

    def array(self, shape: Shape | None = None) -> np.ndarray:
        """The values as a C-contiguous array: what is written into it counts, and what layers write shows.

        `shape`: other sizes of the same count.
        """
        owner = None if self._owner is None else self._owner()
        if owner is None:
            self.read()
            owner = self._settled().numpy()
            self._owner = weakref.ref(owner)
        self._lent = True
        shape = self._shape if shape is None else shape
        return owner[: prod(shape)].reshape(shape)

    # -- between the two

    def _begin(self) -> Tensor:
        if self._late is None:
            self._tensor = torch.zeros(self._shape, dtype=self.dtype, device=self.device)
        else:
            self._tensor, self._late = self._late(), None
        return self._tensor

    def _settled(self) -> Tensor:
        """`_flat` with the tensor's values, which becomes home to the tensor where that may move."""
        tensor = self._tensor
        assert tensor is not None
        if self._home:
            assert self._flat is not None
            return self._flat
        if tensor.device == CPU and tensor.is_contiguous():
            self._flat, self._home = tensor.detach().view(-1), True
            return self._flat
        count = tensor.numel()
        if self._flat is None or self._flat.numel() < count:
            self._flat = torch.empty(count, dtype=self.dtype)
        mirror = self._flat[:count].view(tensor.shape)
        mirror.copy_(tensor.detach())
        if tensor.device == CPU and not self.fixed:
            self._at_home(mirror)
        return self._flat

    def _at_home(self, tensor: Tensor) -> None:
        self._shape = tuple(tensor.shape)
        if self.device == CPU:
            self._tensor, self._home = tensor, True
        else:
            self._tensor, self._home, self._lent = tensor.to(self.device), False, False

    def _shown(self, tensor: Tensor) -> Tensor:
        """`tensor`, or where arrays are held the same values in their memory."""
        assert self._flat is not None
        count = tensor.numel()
        if not self.is_lent or count > self._flat.numel():
            self._forget()
            return tensor
        mirror = self._flat[:count].view(tensor.shape)
        if tensor.data_ptr() != mirror.data_ptr() or tensor.stride() != mirror.stride():
            mirror.copy_(tensor.detach())
        self._home = tensor.device == CPU and not self.fixed
        # a weight is looked at again each time: between two passes nothing else tells that it was edited
        self._lent = self.fixed
        return mirror if self._home else tensor

    def _take_edits(self) -> None:
        """Brings what was written into arrays to the tensor."""
        assert self._flat is not None and self._tensor is not None
        edited = self._flat[: self._tensor.numel()].view(self._shape)
        if self.fixed:
            # only if something was: a weight that changes makes backward passes begin anew
            with torch.no_grad():
                there = edited.to(self._tensor.device)
                if not torch.equal(there, self._tensor):
                    self._tensor.copy_(there)
        else:
            self._tensor = edited.to(self.device)
        if not self.is_lent:
            self._forget()

    def _forget(self) -> None:
        self._flat = self._owner = self._late = None
        self._home = self._lent = False
