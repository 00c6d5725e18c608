"""scripts/bench/tucker2.py searches ResNet-18's convolutions; how long that takes decides no test."""

from __future__ import annotations

import sys

import pytest
import torch
from bench import tucker2 as bench


def test_the_layers_are_resnet18s() -> None:
    layers = list(bench.resnet18())
    assert len(layers) == 20 and len({layer.name for layer in layers}) == 20
    values = sum(layer.outputs * layer.channels * layer.kernel**2 for layer in layers)
    assert values == 11_166_912  # as published, without the 513,000 of the last layer and BatchNorms' 9,600
    macs = sum(layer.outputs * layer.channels * layer.kernel**2 * layer.side**2 for layer in layers)
    assert macs == 1_813_561_344


def test_kernels_have_the_noise_they_say() -> None:
    layer = bench.Layer("a", 24, 16, 3, 1, 8)
    clean, noisy = (layer.weight(1, noise).double() for noise in (0.0, 0.1))
    assert float(clean.square().sum()) == pytest.approx(1, abs=1e-5)
    spectra = [torch.linalg.svdvals(one.flatten(1)).square() for one in (clean, noisy)]
    rank = round(bench.SHARE * 24)
    assert spectra[0][rank:].sum() < 1e-9 < 0.02 < spectra[1][rank:].sum()


def test_what_it_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = [bench.Layer("one", 16, 8, 3, 2, 8), bench.Layer("two", 16, 16, 1, 1, 8)]
    monkeypatch.setattr(bench, "resnet18", lambda: iter(small))
    monkeypatch.setattr(sys, "argv", ["tucker2.py", "--error", "0.1,0.3"])
    bench.main()
    text = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in text.splitlines() if "16x8x3x3" in line or "16x16x1x1" in line]
    assert [row[0] for row in rows] == ["one", "two", "one", "two"]
    for row, bound in zip(rows, (0.1, 0.1, 0.3, 0.3), strict=True):
        assert float(row[3]) <= bound + 5e-5 and int(row[4].replace(",", "")) <= int(row[6].replace(",", ""))
    assert "error 0.1" in text and "error 0.3" in text and "s of processor time" in text.splitlines()[-1]
