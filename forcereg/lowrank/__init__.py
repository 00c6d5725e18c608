"""Low-rank decomposition: factor weights, choose ranks, rewrite nets, account for the cost.

Names are imported when first used, so that the rank rules can be looked at without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcereg.lowrank.factor import Factors, spectrum
    from forcereg.lowrank.functions import cp, kmeans, pca, svd, tucker2, vh
    from forcereg.lowrank.ladder import Ladder, factorize

__all__ = ["Factors", "Ladder", "cp", "factorize", "kmeans", "pca", "spectrum", "svd", "tucker2", "vh"]

_HOME = {"Factors": "factor", "spectrum": "factor", "Ladder": "ladder", "factorize": "ladder"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'functions')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
