"""Critical rules: the r rules along which two responses differ most, with regard to relevance (section 3.3).

Arrays are [N, R]: a row a trio, a column a rule. All arithmetic is float64, so that what is selected does not
depend on the precision that ratings are stored in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ramo_ray.settings import SelectionSettings

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]


def _same_shape(**arrays: ArrayLike) -> list[FloatArray]:
    found = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    if len({array.shape for array in found.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in found.items())
        raise ValueError(f"arrays of different shapes: {shapes}")
    return list(found.values())


def discrepancy(scores_a: ArrayLike, scores_b: ArrayLike) -> FloatArray:
    """|ψ_i(v_A) − ψ_i(v_B)|, elementwise; both arguments have the same shape."""
    a, b = _same_shape(scores_a=scores_a, scores_b=scores_b)
    return np.abs(a - b)


def objective(scores_a: ArrayLike, scores_b: ArrayLike, relevance: ArrayLike, gamma: float) -> FloatArray:
    """What each rule adds to the sum of equation 12: |ψ_i(v_A) − ψ_i(v_B)| + γ·sim(x, u_i).

    γ = 0 is equation 11. All three arrays have the same shape.
    """
    a, b, similarity = _same_shape(scores_a=scores_a, scores_b=scores_b, relevance=relevance)
    return np.abs(a - b) + gamma * similarity


def select_top(objective: ArrayLike, r: int) -> IndexArray:
    """Indices [N, r] of each row's r largest values, largest first; equal values go to the lower index.

    As the sum over rules is separable, these r rules maximise it over all selections of r (equations 11, 12, 15).
    ValueError for a value that is not finite, or r outside 1 … R.
    """
    values = _finite_rows(objective)
    if not 1 <= r <= values.shape[1]:
        raise ValueError(f"r = {r} is outside 1 to {values.shape[1]}, the number of rules")
    return _descending(values)[:, :r]


def select_over_threshold(discrepancy: ArrayLike, objective: ArrayLike, threshold: float, cap: int) -> list[IndexArray]:
    """Indices of each row's rules whose discrepancy exceeds the threshold, at most `cap`, best objective first.

    The variant that the paper leaves to future work: a trio has as many critical rules as it has large
    differences, perhaps none.
    """
    differences, values = _same_shape(discrepancy=_finite_rows(discrepancy), objective=_finite_rows(objective))
    exceeds = differences > threshold
    order = _descending(np.where(exceeds, values, -np.inf))
    counts = np.minimum(exceeds.sum(axis=1), cap)
    return [row[:count] for row, count in zip(order, counts, strict=True)]


def select(
    scores_a: ArrayLike, scores_b: ArrayLike, relevance: ArrayLike, *, settings: SelectionSettings
) -> list[IndexArray]:
    """Critical rules of each trio, best first, as the settings say: the best r, or all over a threshold."""
    values = objective(scores_a, scores_b, relevance, settings.gamma)
    if settings.threshold is None:
        return list(select_top(values, settings.r))
    return select_over_threshold(discrepancy(scores_a, scores_b), values, settings.threshold, settings.cap)


def _finite_rows(values: ArrayLike) -> FloatArray:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"expected an array [N, R], got the shape {rows.shape}")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        raise ValueError(f"the value of row {bad[0, 0]}, rule {bad[0, 1]} is not finite; rate it before selecting")
    return rows


def _descending(rows: FloatArray) -> IndexArray:
    return np.argsort(-rows, axis=1, kind="stable").astype(np.int64, copy=False)
