"""Four disjoint sets of prompts, by hash: a prompt's set depends on its id and on the shares, never on its row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 1_000_000
"""Prompts whose hashes are held (8 bytes each) to cut by rank; above it the shares themselves are the cuts."""


def boundaries(units: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.float64]:
    """Cut [0, 1) so that each set gets its share of the prompts, and none is empty.

    Up to `EXACT_UP_TO` prompts the cuts are hashes, each its set's lowest, so that small sources split exactly. Above
    it the law of large numbers does that by itself (a share of 1% is then within 3% of its size).

    Args:
        units: [n] distinct prompts' hashes in [0, 1), in any order.
        shares: sizes of the sets in any unit, all positive.

    Returns:
        [len(shares) − 1] rising cut points; set k holds cut[k−1] ≤ unit < cut[k].

    Raises:
        ValueError: fewer prompts than sets.
    """
    fractions = np.cumsum(shares) / np.sum(shares)
    if len(units) > EXACT_UP_TO:
        return np.asarray(fractions[:-1])
    ranked = np.unique(units)
    counts = _counts(len(ranked), shares)
    return np.asarray(ranked[np.cumsum(counts)[:-1]])


def _counts(n: int, shares: Sequence[float]) -> NDArray[np.int64]:
    """Apportion n prompts by largest remainder after one each."""
    if n < len(shares):
        raise ValueError(f"{n} usable prompts cannot fill {len(shares)} splits")
    wanted = np.asarray(shares, dtype=np.float64) / np.sum(shares) * n
    counts = np.maximum(np.floor(wanted).astype(np.int64), 1)
    while counts.sum() < n:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > n:
        over = np.where(counts > 1, counts - wanted, -np.inf)
        counts[np.argmax(over)] -= 1
    return np.asarray(counts)


def assign(unit: float, cuts: NDArray[np.float64]) -> int:
    """Index of the set that a prompt with this hash belongs to."""
    return int(np.searchsorted(cuts, unit, side="right"))
