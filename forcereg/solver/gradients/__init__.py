"""How the gradients of processes that train together become their mean; importing this package registers all ways.

A new way is one class: a `Scheme` with `@gradient_scheme("name")`, in a file that is imported below.
"""

from forcereg.solver.gradients import cast, powersgd, ternarized
from forcereg.solver.gradients.base import Scheme, Settings

__all__ = ["Scheme", "Settings", "cast", "powersgd", "ternarized"]
