"""Which examples make up each optimiser step, and how workers share them. Indices only; the same for a given seed.

What a step computes depends on its global batch alone: not on how many workers share it, nor on how many examples
each of them takes at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class MicroBatch(NamedTuple):
    """What one worker computes at once. Weight 0: computed for the other workers' sake, and not counted."""

    rows: Indices
    weights: NDArray[np.float32]


def global_batches(examples: int, global_batch: int, epochs: int, seed: int) -> Iterator[Indices]:
    """Index arrays, one an optimiser step: each epoch shuffled anew, its last batch as short as it comes."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        for start in range(0, examples, global_batch):
            yield order[start : start + global_batch]


def share(batch: Indices, rank: int, world: int, micro_batch: int) -> list[MicroBatch]:
    """One worker's part of a global batch, in as many micro-batches as every other worker's.

    Examples are dealt in turn, so that of a batch sorted by length all workers get like shares. A worker without an
    example for its last micro-batch computes the batch's first one with weight 0: collectives need every worker.
    """
    own = batch[rank::world]
    count = math.ceil(math.ceil(len(batch) / world) / micro_batch)
    parts = [own[start : start + micro_batch] for start in range(0, count * micro_batch, micro_batch)]
    return [
        MicroBatch(part, np.ones(len(part), np.float32))
        if len(part)
        else MicroBatch(batch[:1], np.zeros(1, np.float32))
        for part in parts
    ]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rate of step 1 to `steps`: up in equal parts to the peak at step `warmup`, then down in equal parts to 0.

    0 itself lies one step before the first and one after the last, so that no step is wasted.
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps + 1 - step) / (steps + 1 - max(warmup, 1))
