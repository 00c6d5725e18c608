"""Models as safetensors: back as they were, and one line for what doesn't fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import forcereg
from forcereg.nn import decompose, load, save

safetensors = pytest.importorskip("safetensors.torch")


def build() -> nn.Module:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(384, 5))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = decompose(build().eval(), X, rule=forcereg.MaxError(0.3), fold_bn=True, fc=True).model
    save(made, tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


def test_a_folded_and_decomposed_model_comes_back(tmp_path: Path) -> None:
    made = decompose(build().eval(), X, rule=forcereg.MaxError(0.3), fold_bn=True, fc=True, even_if_dearer=True).model
    save(made, tmp_path / "a.safetensors")
    back = load(build, tmp_path / "a.safetensors").eval()
    assert torch.equal(back(X), made(X)) and str(back) == str(made)
    save(back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_onto_a_model_that_has_chains(file: Path) -> None:
    other = decompose(build().eval(), X, rule=forcereg.MaxError(0.5), fc=True).model
    assert str(load(lambda: other, file)) == str(load(build, file).eval())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    save(model, tmp_path / "tied.safetensors")
    back = load(tied, tmp_path / "tied.safetensors")
    assert back[0].weight is back[1].weight and torch.equal(back[0].weight, model[0].weight)  # type: ignore[index]
    assert "1.weight" not in safetensors.load_file(tmp_path / "tied.safetensors")


def test_other_programs_read_the_weights(file: Path) -> None:
    assert "0.lowrank.weight" in safetensors.load_file(file)


def wider() -> nn.Module:
    model = build()
    model[0] = nn.Conv2d(3, 9, 3, bias=False)  # type: ignore[operator]
    return model


def longer() -> nn.Module:
    return nn.Sequential(*build(), nn.Linear(5, 5))  # type: ignore[arg-type, misc]


def shorter() -> nn.Module:
    return nn.Sequential(*list(build())[:-1])  # type: ignore[call-overload]


def other() -> nn.Module:
    model = build()
    model[0] = nn.ReLU()  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(wider, "'0' gives 8 channels there; the layer that was built is a Conv2d(3, 9", id="width"),
        pytest.param(longer, "has no '6.weight', '6.bias', which the model that was built has", id="more"),
        pytest.param(shorter, "'5' is a chain there; the model that was built has nothing of that name", id="less"),
        pytest.param(other, "'0' is a chain there; the model that was built has a ReLU", id="kind"),
        pytest.param(lambda: build().double(), "float32 there; the model that was built has", id="dtype"),
        pytest.param(lambda: 3, "expected a function that returns a torch.nn.Module, not a int", id="no-model"),
    ],
)
def test_what_differs_is_named(file: Path, made: Callable[[], Any], message: str) -> None:
    with pytest.raises(forcereg.ForceregError) as found:
        load(made, file)
    assert message in str(found.value)


def changed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], file: Path) -> None:
    with safetensors.safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()["forcereg.nn"])
    tensors = safetensors.load_file(file)
    change(said, tensors)
    safetensors.save_file(tensors, file, {"forcereg.nn": json.dumps(said)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda said, t: said.update(version=9), "of version 9; this forcereg reads 1", id="version"),
        pytest.param(lambda said, t: said.pop("chains"), "its names aren't", id="field"),
        pytest.param(lambda said, t: said.update(chains=[1]), "isn't dict", id="form"),
        pytest.param(lambda said, t: said["chains"].update({"0": {"a": 1}}), "'0' has parts a; no method", id="parts"),
        pytest.param(lambda said, t: said["chains"].update({"0": {}}), "'0' has parts ; no method", id="no-parts"),
        pytest.param(lambda said, t: said["chains"]["0"].update(lowrank=7), "'0.lowrank.weight' ", id="groups"),
        pytest.param(lambda said, t: said["chains"]["0"].update(lowrank=0), "no part of a chain", id="no-groups"),
        pytest.param(lambda said, t: t.pop("0.linear.weight"), "'0.linear.weight' isn't there", id="tensor"),
        pytest.param(lambda said, t: t.update({"0.linear.weight": torch.ones(8, 99, 1, 1)}), "'0.linear.w", id="shape"),
        pytest.param(lambda said, t: t.update(more=torch.ones(1)), "has 'more', which the model that", id="unknown"),
        pytest.param(lambda said, t: said["shared"].update({"x": "y"}), "'x' should be the same as 'y'", id="shared"),
    ],
)
def test_damage_is_one_line(file: Path, change: Any, message: str) -> None:
    changed(change, file)
    with pytest.raises(forcereg.ForceregError) as found:
        load(build, file)
    assert message in str(found.value) and str(file) in str(found.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, message in (
        (b"", "no file by forcereg.nn.save"),
        (b"\x08" + 40 * b"\xff", "no file by forcereg.nn.save"),
    ):
        path.write_bytes(content)
        with pytest.raises(forcereg.ForceregError, match=message):
            load(build, path)
    safetensors.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(forcereg.ForceregError, match=r"isn't by forcereg.nn.save: its metadata has no"):
        load(build, path)
    with pytest.raises(forcereg.ForceregError, match=r"none.safetensors: No such file"):
        load(build, tmp_path / "none.safetensors")
    with pytest.raises(forcereg.ForceregError, match="cannot write"):
        save(build(), tmp_path / "none" / "x.safetensors")
