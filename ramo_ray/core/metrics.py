"""How good selected rules and preference labels are: set scores, baselines, intervals, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RuleSets = Sequence[Sequence[int]] | Sequence[NDArray[np.int64]] | NDArray[np.int64]


class SetScores(NamedTuple):
    """Micro-averaged over all sets: each selected rule counts once, whichever set it is in."""

    precision: float
    recall: float
    f1: float


class Interval(NamedTuple):
    """An accuracy and the bounds of its confidence interval."""

    accuracy: float
    low: float
    high: float


class Agreement(NamedTuple):
    """How many labels agree with the human one, of how many that have one."""

    agreeing: int
    compared: int


def set_scores(predicted: RuleSets, true: RuleSets) -> SetScores:
    """Precision, recall and F1 of predicted sets of rules against the true ones, row by row.

    ValueError if the numbers of rows differ, or if one side holds no rule at all.
    """
    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predicted sets for {len(true)} true ones")
    pairs = [({int(i) for i in found}, {int(i) for i in wanted}) for found, wanted in zip(predicted, true, strict=True)]
    hits = sum(len(found & wanted) for found, wanted in pairs)
    return _scores(hits, sum(len(found) for found, _ in pairs), sum(len(wanted) for _, wanted in pairs))


def most_frequent(true: RuleSets, *, rules: int, r: int) -> NDArray[np.int64]:
    """Indices [r] of the rules that are in most of the sets, of `rules` in all; ties go to the lower index.

    The baseline that predicts the same r rules for every trio; count it on training sets.
    """
    if not 1 <= r <= rules:
        raise ValueError(f"r = {r} is outside 1 to {rules}, the number of rules")
    counts = np.zeros(rules, dtype=np.int64)
    for wanted in true:
        counts[np.asarray(wanted, dtype=np.int64)] += 1
    return np.argsort(-counts, kind="stable")[:r].astype(np.int64, copy=False)


def random_expected(true: RuleSets, *, rules: int, r: int) -> SetScores:
    """What predicting r random rules of `rules` for each trio scores in expectation.

    Exact: each true rule is drawn with probability r / R, and the sizes that hits are divided by do not vary.
    """
    if not 1 <= r <= rules:
        raise ValueError(f"r = {r} is outside 1 to {rules}, the number of rules")
    wanted = sum(len(row) for row in true)
    return _scores(wanted * r / rules, len(true) * r, wanted)


def _scores(hits: float, predicted: int, true: int) -> SetScores:
    if not predicted or not true:
        raise ValueError(f"scores are undefined for {predicted} predicted and {true} true rules")
    return SetScores(precision=hits / predicted, recall=hits / true, f1=2 * hits / (predicted + true))


def accuracy_interval(correct: ArrayLike, seed: int, confidence: float = 0.95, resamples: int = 10_000) -> Interval:
    """Accuracy with its bootstrap percentile interval. `correct` [n] is boolean; ValueError if n is 0.

    The number correct in a resample of n rows with replacement is binomial, so it is drawn as such: the
    ordinary bootstrap's distribution without its [resamples, n] indices.
    """
    hits = np.asarray(correct, dtype=bool)
    if hits.ndim != 1 or not len(hits):
        raise ValueError(f"expected one truth value or more [n], got the shape {hits.shape}")
    accuracy = float(hits.mean())
    draws = np.random.default_rng(seed).binomial(len(hits), accuracy, size=resamples) / len(hits)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(accuracy, float(low), float(high))


def agreement(labels: Sequence[int], human: Sequence[int | None]) -> Agreement:
    """Compare labels (0 = A, 1 = B) with human ones, leaving out rows whose human label is None."""
    if len(labels) != len(human):
        raise ValueError(f"{len(labels)} labels for {len(human)} human ones")
    pairs = [(ours, theirs) for ours, theirs in zip(labels, human, strict=True) if theirs is not None]
    if any(value not in (0, 1) for pair in pairs for value in pair):
        raise ValueError("a label must be 0 (A) or 1 (B); a missing human label is None")
    return Agreement(sum(ours == theirs for ours, theirs in pairs), len(pairs))
