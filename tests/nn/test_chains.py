"""Single layers of every kind: their chains are exact at the full rank, one layer again, and go through a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import forcereg
from forcereg.nn import decompose, load, macs, save
from forcereg.nn.kinds import stands_for
from tests.nn.models import difference

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 17)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(1, 2)), (2, 4, 9, 9)),
    "reflect": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), padding_mode="reflect"), (2, 4, 9, 9)),
    "circular": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular", bias=False, groups=2), (2, 4, 9, 9)),
    "conv3d": (nn.Conv3d(3, 5, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (1, 3, 5, 6, 4)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 9)),
    "transposed2d": (
        nn.ConvTranspose2d(4, 6, (3, 4), stride=(2, 3), padding=(1, 0), output_padding=(0, 1), dilation=(2, 1)),
        (2, 4, 5, 6),
    ),
    "transposed-groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6)),
    "transposed3d": (nn.ConvTranspose3d(3, 4, 2, stride=2), (1, 3, 3, 3, 3)),
    "no-batch": (nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "linear": (nn.Linear(7, 5), (2, 3, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 9, 9)),
    "channels_last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 9, 9)),
    "double": (nn.Conv2d(4, 6, 3).double(), (2, 4, 9, 9)),
    "half": (nn.Conv2d(4, 6, 3).half(), (2, 4, 9, 9)),
    "bfloat16": (nn.Conv2d(4, 6, 3).bfloat16(), (2, 4, 9, 9)),
}
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
METHODS = ("pca", "svd", "kmeans", "vh", "tucker2", "cp")
EVERY = {"fc": True, "even_if_dearer": True}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_by_every_method(name: str, tmp_path: Path) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight.dtype)
    expected, tolerance = layer(x), TOLERANCES[layer.weight.dtype]
    for method in METHODS:
        if (layer.weight.dim() != 4 and method in ("vh", "cp")) or (layer.weight.dim() == 2 and method == "tucker2"):
            with pytest.raises(forcereg.ForceregError, match=f"{method} needs a kernel"):
                decompose(layer, x, rule=forcereg.MaxError(0), method=method, **EVERY)
            continue
        made = decompose(layer, x, rule=forcereg.MaxError(0), method=method, **EVERY)
        (done,) = made.report["layers"]
        # a rank that is full leaves the result in the layer's dtype, rounded once
        assert difference(made.model(x), expected) < tolerance and made.model(x).dtype == layer.weight.dtype
        assert done["macs_after"] == macs(made.model, x) and done["macs_before"] == macs(layer, x)
        assert done["params_after"] == sum(one.numel() for one in made.model.parameters())
        composed = stands_for(made.model)
        assert composed is not None and str(composed.layer) == str(layer)
        again = decompose(made.model, x, rule=forcereg.MaxError(0), **EVERY)
        assert difference(again.model(x), expected) < 2 * tolerance
        assert again.report["layers"][0]["macs_before"] == done["macs_after"]
        save(made.model, path := tmp_path / "made.safetensors")
        back = load(lambda: copy.deepcopy(layer), path)
        assert torch.equal(back(x), made.model(x)) and str(back) == str(made.model)


def test_what_a_chain_keeps_of_its_layer() -> None:
    """Memory format, training flag, what learns; and nothing of ours."""
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last).eval()
    layer.bias.requires_grad_(False)  # type: ignore[union-attr]
    made = decompose(layer, torch.randn(1, 4, 5, 5), rule=forcereg.Ranks([3])).model
    first, second = made
    assert first.weight.is_contiguous(memory_format=torch.channels_last) and not made.training
    assert first.weight.requires_grad and second.weight.requires_grad and not second.bias.requires_grad
    assert {type(one).__module__.split(".")[0] for one in made.modules()} == {"torch"}


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)),
        nn.Sequential(),
        nn.Conv2d(3, 4, 3),
        nn.ModuleDict({"lowrank": nn.Conv2d(3, 4, 3, bias=False), "linear": nn.Conv2d(4, 4, 1)}),
    ],
    ids=["names", "empty", "layer", "dict"],
)
def test_what_is_no_chain(module: nn.Module) -> None:
    assert stands_for(module) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), id="bias-between"),
        pytest.param(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3), id="two-windows"),
        pytest.param(nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 4), id="kinds"),
        pytest.param(nn.Conv2d(3, 4, 3, bias=False), nn.ConvTranspose2d(4, 4, 1), id="transposed"),
        pytest.param(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), id="no-layer"),
    ],
)
def test_a_pair_that_is_no_layer(first: nn.Module, second: nn.Module) -> None:
    named = nn.Sequential()
    named.add_module("lowrank", first)
    named.add_module("linear", second)
    assert stands_for(named) is None
