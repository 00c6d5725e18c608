"""Low-rank decomposition: factor weights, rewrite nets, account for the cost."""

from forcereg.lowrank.factor import Factors, pca, spectrum

__all__ = ["Factors", "pca", "spectrum"]
