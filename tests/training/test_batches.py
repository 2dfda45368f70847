import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.training.batches import global_batches, learning_rate, share

SMALL = st.integers(1, 40)


@given(examples=SMALL, global_batch=SMALL, epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_example_comes_once_an_epoch(examples: int, global_batch: int, epochs: int, seed: int) -> None:
    batches = list(global_batches(examples, global_batch, epochs, seed))
    per_epoch = -(-examples // global_batch)

    assert len(batches) == epochs * per_epoch
    assert all(len(batch) == global_batch for batch in batches if len(batch) != examples % global_batch)
    for epoch in range(epochs):
        rows = np.concatenate(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(rows) == list(range(examples))


def test_epochs_and_seeds_shuffle_differently_and_repeatably() -> None:
    first, second = global_batches(50, 50, 2, 0)

    assert first.tolist() != second.tolist()
    assert first.tolist() == next(global_batches(50, 50, 1, 0)).tolist()
    assert first.tolist() != next(global_batches(50, 50, 1, 1)).tolist()
    assert first.tolist() != list(range(50))


@given(size=SMALL, world=st.integers(1, 7), micro_batch=st.integers(1, 9))
def test_workers_share_a_batch_in_equally_many_parts(size: int, world: int, micro_batch: int) -> None:
    batch = np.random.default_rng(0).permutation(1000)[:size]
    shares = [share(batch, rank, world, micro_batch) for rank in range(world)]
    parts = [part for own in shares for part in own]
    counted = [row for part in parts for row, weight in zip(part.rows, part.weights, strict=True) if weight]

    assert len({len(own) for own in shares}) == 1
    assert sorted(counted) == sorted(batch)
    assert sum(part.weights.sum() for part in parts) == size
    assert all(1 <= len(part.rows) == len(part.weights) <= micro_batch for part in parts)
    assert sum((part.weights == 0).sum() for part in parts) < world


@given(size=SMALL, world=st.integers(1, 5), micro_batch=st.integers(1, 9))
def test_the_weighted_mean_does_not_depend_on_the_division(size: int, world: int, micro_batch: int) -> None:
    values = np.random.default_rng(1).normal(size=size)
    shares = [share(np.arange(size), rank, world, micro_batch) for rank in range(world)]
    # As in the loop: each worker's sum over parts, times the number of workers, averaged over them.
    sums = [sum(float(part.weights @ values[part.rows]) / size for part in own) * world for own in shares]

    assert np.mean(sums) == pytest.approx(values.mean())


def test_lengths_are_dealt_evenly_from_a_sorted_batch() -> None:
    assert [part.rows.tolist() for part in share(np.arange(7), 0, 2, 2)] == [[0, 2], [4, 6]]
    assert [part.rows.tolist() for part in share(np.arange(7), 1, 2, 2)] == [[1, 3], [5]]
    lonely = share(np.arange(5, 6), 1, 2, 4)
    assert [(part.rows.tolist(), part.weights.tolist()) for part in lonely] == [([5], [0.0])]


def test_learning_rate_rises_to_the_peak_and_falls_in_equal_parts() -> None:
    rates = [learning_rate(step, steps=7, warmup=4, peak=4.0) for step in range(1, 8)]
    assert rates == pytest.approx([1, 2, 3, 4, 3, 2, 1])

    without = [learning_rate(step, steps=4, warmup=0, peak=4.0) for step in range(1, 5)]
    assert without == pytest.approx([4, 3, 2, 1])

    short = [learning_rate(step, steps=3, warmup=10, peak=10.0) for step in range(1, 4)]
    assert short == pytest.approx([1, 2, 3])
