"""From the log-probabilities of a judge's answers to ratings, by each of Appendix D's three ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ramo_ray.core.records import Rating
from ramo_ray.settings import Method

YES, NO, IRRELEVANT = 0, 1, 2
NUMBERS = tuple(f"{tenths / 10:.1f}" for tenths in range(11))
"""What the method `number` may answer, in rising order."""

Logprobs = NDArray[np.floating]


def ratings_by_method(method: Method, logprobs: Logprobs) -> list[Rating]:
    """Turn the log-probabilities of a method's answers, [n, answers] in their order, into n ratings.

    Raises:
        ValueError: a value is not finite, or the answers' probabilities exceed 1 by more than rounding.
    """
    by_method = {"three_labels": ratings_from_logprobs, "two_labels": two_label_ratings, "number": number_ratings}
    return by_method[method](logprobs)


def ratings_from_logprobs(logprobs: Logprobs) -> list[Rating]:
    """Turn next-token log-probabilities of Yes, No and Irrelevant into ratings.

    Args:
        logprobs: [n, 3], natural logarithms over the full vocabulary, columns in the order yes, no, irrelevant.

    Returns:
        n ratings with score P(Yes) − P(No) in [−1, 1], probabilities normalised over the three labels.

    Raises:
        ValueError: a value is not finite, or a label mass exceeds 1 by more than rounding.
    """
    shares, masses = _shares(logprobs)
    return [
        Rating(float(p[YES] - p[NO]), float(p[YES]), float(p[NO]), float(p[IRRELEVANT]), float(mass))
        for p, mass in zip(shares, masses, strict=True)
    ]


def two_label_ratings(logprobs: Logprobs) -> list[Rating]:
    """Turn next-token log-probabilities of Yes and No, [n, 2], into ratings with score P(Yes) in [0, 1].

    With two labels there is one degree of freedom, so P(Yes) says it all (Appendix D). Errors as with three labels.
    """
    shares, masses = _shares(logprobs)
    return [
        Rating(float(p[YES]), float(p[YES]), float(p[NO]), None, float(mass))
        for p, mass in zip(shares, masses, strict=True)
    ]


def number_ratings(logprobs: Logprobs) -> list[Rating]:
    """Turn log-probabilities of the whole answers `NUMBERS`, [n, 11], into ratings: the likeliest number in [0, 1].

    Of equally likely numbers the smaller is taken. Errors as with three labels.
    """
    _, masses = _shares(logprobs)
    return [
        Rating(float(NUMBERS[place]), None, None, None, float(mass))
        for place, mass in zip(logprobs.argmax(axis=1).tolist(), masses, strict=True)
    ]


def _shares(logprobs: Logprobs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each answer's share of what all answers have, [n, answers], and what they have together, [n] in [0, 1]."""
    if not np.isfinite(logprobs).all():
        raise ValueError("a label's log-probability is not finite")
    wide = logprobs.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    weights = np.exp(wide - peak)
    totals = weights.sum(axis=1, keepdims=True)
    masses = np.exp(peak[:, 0]) * totals[:, 0]
    if (masses > 1 + 1e-3).any():
        raise ValueError("the labels' probabilities sum to more than 1")
    return weights / totals, np.minimum(masses, 1.0)
