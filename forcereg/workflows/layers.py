"""Which layer types run: `forcereg layers`."""

from __future__ import annotations

import forcereg.exports.operators  # noqa: F401  (says what each becomes in ONNX)
from forcereg.net.support import Support, supported


def layer_types() -> list[Support]:
    """Every layer type that runs, with the parameters it reads and its limits; installed packages' ones too.

    In the order of names, each with `.type`, `.params` (message -> the fields of it that are read), `.limits`, and
    `.onnx`, the operators that it becomes.

    >>> [found.params for found in forcereg.layer_types() if found.type == "Power"]
    [{'power_param': ['power', 'scale', 'shift']}]
    """
    return supported()
