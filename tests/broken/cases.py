"""All broken inputs by their ids."""

from __future__ import annotations

from tests.broken import data, layers, nets, solvers, texts
from tests.broken.case import Case

ALL: list[Case] = [*texts.CASES, *nets.CASES, *layers.CASES, *data.CASES, *solvers.CASES]
CASES = {case.id: case for case in ALL}
