"""Parameters shared by name, and every blob's multipliers (Caffe's ParamSpec rules)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from forcereg.layers.base import Layer
from forcereg.lowrank.views import misfit
from forcereg.schema import ParamSpec
from forcereg.schema.spec import LayerSpec

Block = tuple[int, int, float]
"""Columns and rows of group lasso's blocks on one blob, and their block_decay_mult."""


@dataclass(frozen=True)
class Sparse:
    """What structured sparsity asks of a blob: the ParamSpec's fields of the SSL branch."""

    blocks: tuple[Block, ...] = ()
    breadth_mult: float = 0.0
    shape_mult: float = 0.0
    regularization_type: str = ""
    decay_proto: str = ""

    @property
    def used(self) -> bool:
        """Whether any of it was set to something."""
        return self != NOT_SPARSE


NOT_SPARSE = Sparse()


@dataclass
class Multipliers:
    """Multipliers, force_view and sparsity of an owned blob; only what somebody has set is `explicit`."""

    explicit: dict[str, Any]
    blocks: tuple[Block, ...] = ()
    decay_proto: str = ""

    def value(self, field: str) -> Any:
        # a net that doesn't speak of forces feels none
        return self.explicit.get(field, DEFAULTS[field])

    @property
    def lr_mult(self) -> float:
        return float(self.value("lr_mult"))

    @property
    def decay_mult(self) -> float:
        return float(self.value("decay_mult"))

    @property
    def force_mult(self) -> float:
        return float(self.value("force_mult"))

    @property
    def force_view(self) -> str:
        return str(self.value("force_view"))

    @property
    def sparse(self) -> Sparse:
        breadth, shape = (self.value(f"{field}_decay_mult") for field in ("breadth", "kernel_shape"))
        return Sparse(self.blocks, breadth, shape, self.value("regularization_type"), self.decay_proto)


DEFAULTS = {
    "lr_mult": 1.0,
    "decay_mult": 1.0,
    "force_mult": 0.0,
    "force_view": "FILTERS",
    "breadth_decay_mult": 0.0,
    "kernel_shape_decay_mult": 0.0,
    "regularization_type": "",
}


def _said(param: Any) -> dict[str, Any]:
    """The fields of DEFAULTS that a ParamSpec sets."""
    said = {field: getattr(param, field) for field in DEFAULTS if param.HasField(field)}
    if "force_view" in said:
        said["force_view"] = ParamSpec.ForceView.Name(param.force_view)
    return said


def _blocks(param: Any) -> tuple[Block, ...]:
    return tuple((one.xdimen, one.ydimen, one.block_decay_mult) for one in param.block_group_lasso)


class Owners:
    """Which blob owns each shared parameter, and the owners' multipliers, in net order."""

    def __init__(self) -> None:
        self.multipliers: dict[tuple[str, int], Multipliers] = {}
        self.borrowed: dict[str, str] = {}
        self._by_name: dict[str, tuple[str, int]] = {}
        self._modules: dict[str, Layer] = {}

    def add(self, spec: LayerSpec, module: Layer) -> None:
        """Enters a new layer's blobs: an owner keeps its blob, a borrower gets its owner's."""
        params, blobs = spec.message.param, module.blobs
        earlier = self._modules.get(spec.name)
        if earlier is not None and (blobs or earlier.blobs):
            raise spec.fail(f"the name is taken by {earlier.spec.where}; layers with weights need their own")
        self._modules[spec.name] = module
        if len(params) > len(blobs):
            raise spec.fail(f"has {len(params)} param entries for {len(blobs)} blobs; remove the surplus")
        for index, blob in enumerate(blobs):
            param = params[index] if index < len(params) else ParamSpec()
            explicit = _said(param)
            view = explicit.get("force_view", "FILTERS")
            if problem := misfit(view, blob.shape):
                raise spec.fail(f"param {index}: force_view {view} {problem}; use another view, or remove it")
            # BatchNorm's statistics: no solver moves them
            if not isinstance(blob, nn.Parameter):
                self._warn_fixed(spec, index, param, index < len(params))
                explicit["lr_mult"] = 0.0
            owner = self._by_name.get(param.name) if param.name else None
            if owner is None:
                self.multipliers[(spec.name, index)] = Multipliers(explicit, _blocks(param), param.decay_proto)
                if param.name:
                    self._by_name[param.name] = (spec.name, index)
            else:
                self._borrow(spec, index, param, explicit, owner)

    def check_finished(self, module: Callable[[str], Layer], freeze: bool) -> None:
        """Every sharer has spoken: what nobody may learn (lr_mult 0) gets no gradient from here on, if `freeze`."""
        for (name, index), multipliers in self.multipliers.items():
            blob = module(name).blobs[index]
            # without gradients for them a frozen front costs no backward pass; force_backward asks for all
            if freeze and isinstance(blob, nn.Parameter) and multipliers.lr_mult == 0:
                blob.requires_grad_(False)
        self._modules = {}

    @staticmethod
    def _warn_fixed(spec: LayerSpec, index: int, param: Any, given: bool) -> None:
        if given and param.lr_mult != 0:
            warnings.warn(
                f"{spec.where}: blob {index} is a statistic; its lr_mult {param.lr_mult:g} is taken as 0",
                stacklevel=2,
            )

    def _borrow(
        self, spec: LayerSpec, index: int, param: Any, explicit: dict[str, Any], owner: tuple[str, int]
    ) -> None:
        owned = self._modules[owner[0]].blobs[owner[1]]
        self._check_shape(spec, index, param, self._modules[spec.name].blobs[index], owned, owner)
        merged = self.multipliers[owner].explicit
        for field, value in explicit.items():
            # whoever speaks first speaks for all sharers; the others may only agree, as in Caffe
            if merged.setdefault(field, value) != value:
                mine, theirs = (one if isinstance(one, str) else f"{one:g}" for one in (value, merged[field]))
                raise spec.fail(
                    f"shared param '{param.name}' has {field} {mine}, layer '{owner[0]}' gives {theirs}; use one value"
                )
        self._borrow_sparse(spec, param, self.multipliers[owner], owner[0])
        self._modules[spec.name].share_blob(index, owned)
        self.borrowed[f"{spec.name}/{index}"] = f"{owner[0]}/{owner[1]}"

    @staticmethod
    def _borrow_sparse(spec: LayerSpec, param: Any, owned: Multipliers, owner: str) -> None:
        """The SSL branch's rules: one set of blocks, whoever brings it, and individual decay of the owner's alone."""
        if blocks := _blocks(param):
            if owned.blocks:
                raise spec.fail(
                    f"shared param '{param.name}' has block_group_lasso, and so has layer '{owner}' or another that "
                    "shares it; give it once"
                )
            owned.blocks = blocks
        if param.decay_proto:
            raise spec.fail(f"shared param '{param.name}' has decay_proto; give it in layer '{owner}', which owns it")

    @staticmethod
    def _check_shape(
        spec: LayerSpec, index: int, param: Any, blob: Tensor, owned: Tensor, owner: tuple[str, int]
    ) -> None:
        # each borrower decides for itself, its owner isn't asked
        permissive = param.share_mode == ParamSpec.DimCheckMode.Value("PERMISSIVE")
        fits = blob.numel() == owned.numel() if permissive else blob.shape == owned.shape
        if not fits:
            what = "count" if permissive else "shape"
            raise spec.fail(
                f"blob {index} {list(blob.shape)} shares param '{param.name}' with layer '{owner[0]}' "
                f"{list(owned.shape)}; they need the same {what}"
            )
