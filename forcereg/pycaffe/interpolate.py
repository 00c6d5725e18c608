"""Images in other sizes, by the two rules that pycaffe's users have had from scikit-image and SciPy.

Order 0 and 1 are computed here; higher ones ask SciPy for its splines. Neither smooths before it shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Sizes = Sequence[int] | np.ndarray
"""(height, width)."""
Positions = Callable[[int, int], np.ndarray]
"""(size before, size behind) -> where each new pixel lies among the old ones, of which the first is at 0."""


def resize_image(im: np.ndarray, new_dims: Sizes, interp_order: int = 1) -> np.ndarray:
    """(h, w, K) float32 of an image (H, W, K); `new_dims` is (h, w).

    Of one channel or three it is scikit-image's `resize`, and what lies outside counts as the image's least value, so
    that borders lean to it when it grows. Of other numbers it is SciPy's `zoom`, which keeps the corner pixels' centres
    in place. Nothing is smoothed first. `interp_order` 0 is nearest, 1 linear; above, splines, which need SciPy.
    Raises RuntimeError for two axes, unless the image is 1 or 3 wide.
    """
    size = (int(new_dims[0]), int(new_dims[1]))
    if im.shape[-1] not in (1, 3):
        if im.ndim != 3:
            raise RuntimeError(f"an image to resize has {im.ndim} axes, expected 3: height, width, channels")
        return zoomed(im, size, interp_order).astype(np.float32)
    least, most = float(im.min()), float(im.max())
    if not most > least:
        return np.full((*size, im.shape[-1]), least, np.float32)
    # shifted, so that outside, where 0 is, is the least; scaled as scikit-image's users had to
    found = resized((im - least) / (most - least), size, interp_order)
    return (found * (most - least) + least).astype(np.float32)


def resized(image: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    """(h, w, ...) float64 of an image (H, W, ...): pixels are squares whose edges meet; outside of it all is 0.

    As scikit-image's `resize(image, size, order, mode="constant", anti_aliasing=False)` on floats from 0 to 1.
    Raises ImportError for an order above 1 without SciPy.
    """
    if order > 1:
        return _splines(image, size, order, mode="grid-constant", grid_mode=True).clip(0, 1)
    return _on_both_axes(image, size, order, lambda old, new: (np.arange(new) + 0.5) * old / new - 0.5)


def zoomed(image: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    """(h, w, ...) of an image (H, W, ...): the first and last pixel of an axis stay where they are.

    As SciPy's `ndimage.zoom(image, factors, order=order)`, which keeps the type of integers. Raises as `resized`.
    """
    if order > 1:
        return _splines(image, size, order, mode="constant", grid_mode=False)
    found = _on_both_axes(image, size, order, lambda old, new: np.arange(new) * ((old - 1) / max(new - 1, 1)))
    if np.issubdtype(image.dtype, np.integer):
        return np.trunc(found + np.copysign(0.5, found)).astype(image.dtype)
    return found


def _on_both_axes(image: np.ndarray, size: Sequence[int], order: int, positions: Positions) -> np.ndarray:
    found = np.asarray(image, np.float64)
    for axis, new in enumerate(size):
        at = positions(found.shape[axis], new)
        found = (_nearest, _linear)[order](found, at, axis)
    return found


def _nearest(image: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    return np.take(image, np.floor(at + 0.5).astype(int), axis)


def _linear(image: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    # a zero on each side: what lies outside
    padded = np.pad(image, [(int(one == axis),) * 2 for one in range(image.ndim)])
    left = np.floor(at).astype(int)
    shape = [-1 if one == axis else 1 for one in range(image.ndim)]
    share = (at - left).reshape(shape)
    return np.take(padded, left + 1, axis) * (1 - share) + np.take(padded, left + 2, axis) * share


def _splines(image: np.ndarray, size: Sequence[int], order: int, **how: Any) -> np.ndarray:
    try:
        from scipy import ndimage
    except ImportError:
        raise ImportError(f"interpolation of order {order} needs SciPy: pip install scipy") from None
    factors = [new / old for new, old in zip(size, image.shape, strict=False)] + [1.0] * (image.ndim - 2)
    found: np.ndarray = ndimage.zoom(image, factors, order=order, **how)
    return found
