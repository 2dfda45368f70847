"""From ratings on the critical rules to a preference label (equations 4 and 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Preference(NamedTuple):
    """Which response is chosen, φ(v_A) − φ(v_B), and whether that is a tie."""

    chosen_is: Literal["a", "b"]
    margin: float
    tie: bool


def aggregate(scores: ArrayLike, selected: Sequence[ArrayLike] | NDArray[np.int64]) -> NDArray[np.float64]:
    """φ of each row: the mean of its selected rules' scores (equation 10; equation 2 where their number varies).

    scores [N, R], of which only the selected need be known (the rest may be NaN); `selected` holds N lists of
    indices. Returns [N]. ValueError for a row that selects nothing, or whose selected scores are not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    indices = [np.asarray(row, dtype=np.int64) for row in selected]
    if table.ndim != 2 or len(table) != len(indices):
        raise ValueError(f"scores of shape {table.shape} do not fit {len(indices)} rows of selected rules")
    return np.array([_mean(row[chosen], place) for place, (row, chosen) in enumerate(zip(table, indices, strict=True))])


def _mean(scores: NDArray[np.float64], place: int) -> float:
    if not scores.size:
        raise ValueError(f"row {place} selects no rule, so it has no aggregated score")
    if not np.isfinite(scores).all():
        raise ValueError(f"row {place} selects a rule whose score is not finite")
    return float(scores.mean())


def prefer(phi_a: float, phi_b: float, tie_tolerance: float = 0.0) -> Preference:
    """Choose A if its φ is strictly higher, else B (equation 4).

    A margin of at most `tie_tolerance` either way is a tie, which goes to B as well. ValueError for a φ that is
    not finite.
    """
    margin = float(phi_a - phi_b)
    if not math.isfinite(margin):
        raise ValueError(f"no preference between φ = {phi_a} and φ = {phi_b}: both must be finite")
    return Preference("a" if margin > tie_tolerance else "b", margin, abs(margin) <= tie_tolerance)
