"""Intervals by the bootstrap over prompts: what is drawn again is what is independent.

Conversations and trios of one prompt hang together, so whole prompts are drawn, with all that belongs to them. A
resample is a row of counts: how often it holds each prompt. Every statistic is computed for all rows at once, and the
first row is the data as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

TAIL = 0.025
"""Probability outside a 95% interval, on either side."""


class Estimate(NamedTuple):
    """A statistic and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def prompt_weights(prompts: int, samples: int, seed: int) -> FloatArray:
    """Counts [1 + samples, prompts]: the data themselves, each prompt once, then `samples` draws with replacement.

    ValueError for fewer than two prompts, whose resamples would all be alike.
    """
    if prompts < 2:
        raise ValueError(f"resampling needs two prompts or more, got {prompts}")
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=samples)
    return np.concatenate([np.ones((1, prompts)), drawn])


def sum_by_prompt(values: ArrayLike, prompt_of: NDArray[np.int64], prompts: int) -> FloatArray:
    """Sums [prompts] of `values` [n], each of which belongs to the prompt `prompt_of` [n] names."""
    sums = np.bincount(prompt_of, weights=np.asarray(values, dtype=np.float64), minlength=prompts)
    return np.asarray(sums, dtype=np.float64)


def ratios(numerators: FloatArray, denominators: FloatArray, weights: FloatArray) -> FloatArray:
    """Σ numerators / Σ denominators of each resample [1 + samples], from sums by prompt; NaN where there is nothing."""
    below = weights @ denominators
    return np.asarray(np.divide(weights @ numerators, below, out=np.full(len(weights), np.nan), where=below > 0))


def estimate(values: FloatArray) -> Estimate | None:
    """A statistic's value on the data (first) and on the resamples as an estimate; None where it is not defined.

    Resamples on which it is not defined are left out.
    """
    if not np.isfinite(values[0]):
        return None
    drawn = values[np.isfinite(values)]
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    return Estimate(float(values[0]), float(low), float(high))


def share(numerators: FloatArray, denominators: FloatArray, weights: FloatArray) -> Estimate | None:
    """The mean of what lies in [0, 1], from sums by prompt; None where there is nothing to average.

    If it is 0 or 1 on every prompt, resampling cannot tell how far that goes: the bound is then the exact
    (Clopper-Pearson) one for so many prompts, which holds for any variable in [0, 1].
    """
    found = estimate(ratios(numerators, denominators, weights))
    if found is None or 0 < found.value < 1:
        return found
    reach = 1 - TAIL ** (1 / np.count_nonzero(denominators))
    return found._replace(high=float(reach)) if found.value == 0 else found._replace(low=float(1 - reach))
