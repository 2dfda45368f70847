"""A figure before and after, on the same prompts: what it was, what it is, and how far the difference is certain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ramo_ray.core.resampling import Estimate, FloatArray, estimate, prompt_weights, ratios, share

RESAMPLES = 2_000


class Change(NamedTuple):
    """Means before and after, and the mean of the differences, over so many `prompts` that have both."""

    before: Estimate
    after: Estimate
    difference: Estimate
    prompts: int


def change(before: ArrayLike, after: ArrayLike, seed: int, *, shares: bool = False) -> Change | None:
    """Compare two figures of each prompt, both [prompts]; None where fewer than two prompts have both.

    A figure that is not finite is missing. `shares` says that the figures lie in [0, 1], so that a mean of 0 or 1 has
    an exact bound. The difference's interval has no width where every prompt's difference is the same. Prompts are
    drawn with both figures, so what a prompt does to both of them leaves the difference's interval narrow.
    """
    one, other = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"expected two figures of each prompt [n], got the shapes {one.shape} and {other.shape}")
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < 2:
        return None
    weights = prompt_weights(len(one), RESAMPLES, seed)
    each = np.ones(len(one))
    mean = share if shares else _mean
    found = (mean(one, each, weights), mean(other, each, weights), _mean(other - one, each, weights))
    was, now, difference = (value for value in found if value is not None)
    return Change(was, now, difference, len(one))


def _mean(values: FloatArray, counts: FloatArray, weights: FloatArray) -> Estimate | None:
    return estimate(ratios(values, counts, weights))
