"""How a budget spreads over the layers: what a rank of a layer loses, and how the losses of layers add up.

Add one here: a class and its decorator; budgets and `--choose` take it by its name.
"""

from __future__ import annotations

from typing import ClassVar

from forcereg.registry import chooser

USUAL = "energy"
"""What budgets spread by if nothing is said."""


class Chooser:
    """What budgets are spread by: the least sum of the layers' losses, each weighed by what the layer costs whole."""

    worst: ClassVar[bool] = False
    """Whether the largest loss of a layer is made least, of equals the sum; unweighed."""


@chooser("energy")
class Energy(Chooser):
    """By the relative squared error that each method minimises: of the weights, of the responses if data-aware."""


@chooser("minmax")
class Minmax(Chooser):
    """By the largest of these errors over the layers (ALDS: Liebenwein et al., NeurIPS 2021, section 3.2).

    What a budget leaves beyond that goes where it lowers the weighed sum most. ALDS bounds the operator norm; here the
    error is the squared Frobenius norm's, as everywhere.
    """

    worst = True
