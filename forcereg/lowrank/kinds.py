"""The decomposition methods that forcereg has: `factorizer`, filled."""

from __future__ import annotations

from forcereg.lowrank import methods, parafac, tucker  # noqa: F401 (they register themselves)
from forcereg.registry import factorizer

__all__ = ["factorizer"]
