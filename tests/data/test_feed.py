"""What all feeds share."""

from __future__ import annotations

import pytest

from forcereg.data.feed import batches_ahead


@pytest.mark.parametrize(
    ("prefetch", "shape", "budget", "expected"),
    [
        pytest.param(4, (256, 3, 227, 227), 2 << 30, 4, id="default"),
        pytest.param(0, (1, 1, 1, 1), 2 << 30, 1, id="none-is-one"),
        pytest.param(30, (256, 3, 227, 227), 2 << 30, 30, id="as-asked"),
        pytest.param(100, (256, 3, 227, 227), 2 << 30, 54, id="as-fits"),
        pytest.param(100, (256, 3, 227, 227), 0, 4, id="a-few-always"),
        pytest.param(4294967295, (1, 1, 1, 1), 2 << 30, 1024, id="never-billions"),
        pytest.param(4294967295, (0, 1, 1, 1), 0, 4, id="no-values"),
    ],
)
def test_batches_prepared_ahead(prefetch: int, shape: tuple[int, ...], budget: int, expected: int) -> None:
    assert batches_ahead(prefetch, shape, budget) == expected
