"""Spearman's rank correlation with ties, over resamples: the correlation of average ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def rank_correlations(ways: ArrayLike, weights: FloatArray) -> FloatArray:
    """Spearman's correlation of each way's columns with the first way's, in each resample.

    Args:
        ways: [W, n, columns], a row an observation, finite.
        weights: [resamples, n], how often each resample holds each observation; whole numbers.

    Returns:
        [W, resamples, columns]; NaN where a column is constant in a resample, as its ranks then say nothing.

    Raises:
        ValueError: shapes that do not fit, or a value that is not finite.
    """
    values = np.asarray(ways, dtype=np.float64)
    if values.ndim != 3 or not len(values) or weights.shape[1:] != values.shape[1:2]:
        raise ValueError(f"ways of shape {values.shape} do not fit weights of shape {weights.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite, so it has no rank")
    # One row an observation, so that ties are gathered row by row.
    counts = np.ascontiguousarray(weights.T)
    result = np.empty((len(values), len(weights), values.shape[2]))
    for column in range(values.shape[2]):
        reference = centred_ranks(values[0, :, column], counts)
        for way, own in enumerate(values[:, :, column]):
            result[way, :, column] = _correlation(reference, centred_ranks(own, counts), counts)
    return result


def _correlation(left: FloatArray, right: FloatArray, counts: FloatArray) -> FloatArray:
    weighted = counts * left
    products, left_square = (np.einsum("ns,ns->s", weighted, side) for side in (right, left))
    spread = left_square * np.einsum("ns,ns,ns->s", counts, right, right)
    result = np.divide(products, np.sqrt(spread), out=np.full(counts.shape[1], np.nan), where=spread > 0)
    return np.asarray(np.clip(result, -1, 1))


def centred_ranks(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Average ranks [n, resamples] of `values` [n], less their mean; multiples of a half, so exact.

    A value's rank is the count of smaller ones plus half the count of equal ones; in a resample of n these average
    n / 2 whatever the ties, so a constant column has ranks of exactly zero. `counts` is [n, resamples].
    """
    _, starts, group = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    equal = np.add.reduceat(counts[order], starts, axis=0)
    middle = np.cumsum(equal, axis=0) - equal / 2 - counts.sum(axis=0) / 2
    ranks = np.empty_like(counts)
    ranks[order] = middle[group]
    return ranks
