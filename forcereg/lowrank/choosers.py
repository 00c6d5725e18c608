"""How a budget spreads over the layers: what a rank of a layer loses, and how the losses of layers add up.

Add one here: a class and its decorator; budgets and `--choose` take it by its name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from forcereg.registry import chooser

if TYPE_CHECKING:
    from torch import Tensor

    from forcereg.lowrank.factor import Method
    from forcereg.lowrank.metric import Metric
    from forcereg.lowrank.ranks import Candidate

USUAL = "energy"
"""What budgets spread by if nothing is said."""


class Chooser:
    """What budgets are spread by: the least sum of the layers' losses, each weighed by what the layer costs whole."""

    worst: ClassVar[bool] = False
    """Whether the largest loss of a layer is made least, of equals the sum; unweighed."""
    inputs: ClassVar[bool] = False
    """Whether it needs the second moments of the layers' inputs, and so data."""

    def seen(self, candidates: Sequence[Candidate], moments: Mapping[str, Tensor]) -> Sequence[Candidate]:
        """The layers with the errors that count; `moments`: name -> (groups, K, K), where it needs them."""
        return candidates


class Measuring(Chooser):
    """The same with errors that are measured otherwise than methods do."""

    @abstractmethod
    def metric(self, method: Method, moments: Any) -> Metric:
        """What an error of one group's weight counts; `moments` (K, K): E[x x^T] if it needs them, else None."""

    def seen(self, candidates: Sequence[Candidate], moments: Mapping[str, Tensor]) -> Sequence[Candidate]:
        """As of every one."""
        return [self._seen(one, moments[one.name] if self.inputs else None) for one in candidates]

    def _seen(self, one: Candidate, moments: Tensor | None) -> Candidate:
        def metric(method: Method, group: int) -> Metric:
            return self.metric(method, None if moments is None else moments[group])

        return replace(one, ladder=one.ladder.measured(type(self), metric))


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


@chooser("responses")
class Responses(Measuring):
    """By the error of the layers' responses: E|(W - W_r) x|^2 / E|W x|^2 over inputs x of training data.

    For every method, whatever its chains minimise. With second moments M = E[x x^T] the error is
    trace((W - W_r) M (W - W_r)^T), M regularised.
    """

    inputs = True

    def metric(self, method: Method, moments: Any) -> Metric:
        """M; zeros that pad an input count."""
        from forcereg.lowrank.metric import Metric, regularised

        return Metric(inputs=regularised(moments))


@chooser("remainder")
class Remainder(Measuring):
    """By the error behind the leading direction of each mode that a method cuts: |R - R_r|^2 / |R|^2.

    Force draws filters together, so that their common direction holds nearly all of a weight's energy and any rank of
    1 seems good enough. What tells filters apart is R = (I - u u^T) W, u the leading direction of the outputs; where
    inputs are cut too (tucker2, cp) R = (I - u u^T) W (I - v v^T), v that of the inputs; for vh R is behind the first
    pair of its unfolding. A cut that keeps the leading directions, as a truncated spectrum does, leaves R - P R Q out
    of R, with P and Q on what it keeps: for pca, svd and vh that is the sum of squared singular values beyond r over
    those beyond 1; a pair (1, s) or (r, 1) of tucker2 keeps nothing of R and loses all of it.
    """

    def metric(self, method: Method, moments: Any) -> Metric:
        """The method's own."""
        return method.behind()
