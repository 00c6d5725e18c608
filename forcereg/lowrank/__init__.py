"""Low-rank decomposition: factor weights, choose ranks, rewrite nets, account for the cost."""

from forcereg.lowrank import methods, parafac, tucker  # noqa: F401 (they register themselves)
from forcereg.lowrank.factor import Factors, spectrum
from forcereg.lowrank.functions import cp, kmeans, pca, svd, tucker2, vh
from forcereg.lowrank.ladder import Ladder, factorize

__all__ = ["Factors", "Ladder", "cp", "factorize", "kmeans", "pca", "spectrum", "svd", "tucker2", "vh"]
