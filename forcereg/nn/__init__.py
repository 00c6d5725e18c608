"""Force and low-rank decomposition for any torch.nn.Module, by the engine that nets of prototxts have.

    optimizer = forcereg.nn.Force(torch.optim.SGD(model.parameters(), lr=0.1), model, force_decay=1e-3)
    made = forcereg.nn.decompose(model, images, rule=forcereg.MaxMacs(0.5))
    forcereg.nn.save(made.model, "small.safetensors")

Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcereg.nn.clip import Clipped, rank_clipping
    from forcereg.nn.costs import macs, ranks
    from forcereg.nn.cut import Decomposition, decompose
    from forcereg.nn.lasso import GroupLasso
    from forcereg.nn.optimizer import Force
    from forcereg.nn.saved import load, save
    from forcereg.nn.smaller import Shrunk, shrink

__all__ = [
    "Clipped",
    "Decomposition",
    "Force",
    "GroupLasso",
    "Shrunk",
    "decompose",
    "load",
    "macs",
    "rank_clipping",
    "ranks",
    "save",
    "shrink",
]

_HOME = {
    "Clipped": "clip",
    "Decomposition": "cut",
    "Force": "optimizer",
    "GroupLasso": "lasso",
    "Shrunk": "smaller",
    "decompose": "cut",
    "load": "saved",
    "macs": "costs",
    "rank_clipping": "clip",
    "ranks": "costs",
    "save": "saved",
    "shrink": "smaller",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
