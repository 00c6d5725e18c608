"""Convolutions that leave zero weights out, for tests only: the forms that `conv_mode` and `--sparse` name.

A form of one's own is a class of `Form`, registered by `forcereg.registry.sparse_form("name")`.
"""

from forcereg.layers.sparse import direct, lowered
from forcereg.layers.sparse.form import DENSE, MODES, NO_BACKWARD, Form, Sparse, available, make

__all__ = ["DENSE", "MODES", "NO_BACKWARD", "Form", "Sparse", "available", "direct", "lowered", "make"]
