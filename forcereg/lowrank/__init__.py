"""Low-rank decomposition: factor weights, choose ranks, rewrite nets, account for the cost."""

from functools import partial

from forcereg.lowrank import methods, tensors  # noqa: F401 (they register themselves)
from forcereg.lowrank.factor import Factors, Ladder, factorize, spectrum

pca = partial(factorize, method="pca")
svd = partial(factorize, method="svd")
vh = partial(factorize, method="vh")
kmeans = partial(factorize, method="kmeans")
tucker2 = partial(factorize, method="tucker2")
cp = partial(factorize, method="cp")

__all__ = ["Factors", "Ladder", "cp", "factorize", "kmeans", "pca", "spectrum", "svd", "tucker2", "vh"]
