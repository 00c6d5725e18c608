"""What training adds to the loss's gradients; importing this package registers all of it.

A new regularizer is one file here: a `Regularizer` with `@regularizer("name")`, imported below.
"""

from forcereg.solver.regularizers import decay, force, lasso
from forcereg.solver.regularizers.base import Regularizer

__all__ = ["Regularizer", "decay", "force", "lasso"]
