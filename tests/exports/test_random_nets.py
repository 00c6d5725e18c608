"""Nets by chance, exported and proved: blob by blob, at several batch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

import forcereg
from forcereg.errors import ForceregError
from tests.exports.random_nets import filled, net_text
from tests.long_forms import Rounds

pytest.importorskip("onnxruntime")
REFUSED = ("at most 3", "they end at 3", "the TEST net has nothing to give")
"""What can't be a file, and is said."""


def test_they_compute_the_same(rounds: Rounds, tmp_path: Path) -> None:
    for chance in rounds(12):
        text = net_text(chance, chance.choice([2, 4, 9]))
        options = chance.choice([{}, {}, {"fold": False}, {"opset": 13}, {"opset": 18}])
        try:
            forcereg.export(filled(text, chance.randrange(1000)), tmp_path / "a.onnx", **options)
        except ForceregError as error:
            assert any(one in str(error) for one in REFUSED), f"{error}\n{options} {text}"
