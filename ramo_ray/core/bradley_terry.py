"""The Bradley-Terry model of preferences between rewards (equations 5 to 7), stable for rewards of any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def log_sigmoid(t: ArrayLike) -> FloatArray:
    """log σ(t) = −log(1 + e^−t), elementwise, without overflow."""
    return np.asarray(-np.logaddexp(0.0, -np.asarray(t, dtype=np.float64)))


def sigmoid(t: ArrayLike) -> FloatArray:
    """σ(t) = 1 / (1 + e^−t), elementwise, with full relative precision where it is tiny."""
    return np.asarray(np.exp(log_sigmoid(t)))


def preference_probability(reward_a: ArrayLike, reward_b: ArrayLike) -> FloatArray:
    """P(y_A ≻ y_B) = σ(φ(v_A) − φ(v_B)), elementwise (equation 5)."""
    return sigmoid(np.asarray(reward_a, dtype=np.float64) - np.asarray(reward_b, dtype=np.float64))


def negative_log_likelihood(reward_chosen: ArrayLike, reward_rejected: ArrayLike) -> float:
    """Mean of −log σ(φ(v_+) − φ(v_−)) over the pairs (equations 6 and 7). ValueError if there are none."""
    margin = np.asarray(reward_chosen, dtype=np.float64) - np.asarray(reward_rejected, dtype=np.float64)
    if not margin.size:
        raise ValueError("the likelihood of no pairs is undefined")
    return float(-log_sigmoid(margin).mean())
