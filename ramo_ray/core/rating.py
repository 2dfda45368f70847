"""From a judge's label log-probabilities to ratings (Appendix D)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ramo_ray.core.records import Rating

YES, NO, IRRELEVANT = 0, 1, 2


def ratings_from_logprobs(logprobs: NDArray[np.floating]) -> list[Rating]:
    """Turn next-token log-probabilities of Yes, No and Irrelevant into ratings.

    Args:
        logprobs: [n, 3], natural logarithms over the full vocabulary, columns in the order yes, no, irrelevant.

    Returns:
        n ratings with score P(Yes) − P(No) in [−1, 1], probabilities normalised over the three labels.

    Raises:
        ValueError: a value is not finite, or a label mass exceeds 1 by more than rounding.
    """
    if not np.isfinite(logprobs).all():
        raise ValueError("a label's log-probability is not finite")
    wide = logprobs.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    weights = np.exp(wide - peak)
    totals = weights.sum(axis=1, keepdims=True)
    mass = np.exp(peak[:, 0]) * totals[:, 0]
    if (mass > 1 + 1e-3).any():
        raise ValueError("the labels' probabilities sum to more than 1")
    p = weights / totals
    return [
        Rating(float(row[YES] - row[NO]), float(row[YES]), float(row[NO]), float(row[IRRELEVANT]), float(min(m, 1.0)))
        for row, m in zip(p, mass, strict=True)
    ]
