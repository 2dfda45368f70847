"""Batches of many requests: what each of them gets, when, and what becomes of those that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramo_ray.errors import EngineError
from ramo_ray.serving.batcher import Batcher, BusyError, TooLargeError

REQUESTS = st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=8), min_size=1, max_size=9)


class Sums:
    """Scores a row by its sum, and remembers the batches. Held back until it is let go, if it is to be."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[list[int]]] = []
        self.let_go, self.began = threading.Event(), threading.Event()
        if not held:
            self.let_go.set()

    def __call__(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append([list(row) for row in rows])
        self.began.set()
        assert self.let_go.wait(20)
        return np.array([sum(row) for row in rows], dtype=np.float32)


def batcher(score: Sums, batch_tokens: int = 20, queue_tokens: int = 10_000) -> Batcher:
    return Batcher(score, batch_tokens=batch_tokens, queue_tokens=queue_tokens)


@settings(max_examples=60)
@given(REQUESTS, st.integers(1, 30))
def test_each_request_gets_its_own_rewards_in_order_and_each_row_is_scored_once(
    requests: list[list[list[int]]], batch_tokens: int
) -> None:
    score = Sums()

    async def ask() -> list[NDArray[np.float32]]:
        own = batcher(score, batch_tokens)
        found = await asyncio.gather(*(own.rewards(rows) for rows in requests))
        assert own.waiting == 0
        assert own.scored == sum(map(len, requests))
        await own.close()
        return list(found)

    found = asyncio.run(ask())
    assert [rewards.tolist() for rewards in found] == [[sum(row) for row in rows] for rows in requests]
    done = sorted(row for batch in score.batches for row in batch)
    assert done == sorted(row for rows in requests for row in rows)
    for batch in score.batches:
        assert len(batch) == 1 or sum(map(len, batch)) <= batch_tokens


def test_a_giant_request_lets_a_small_one_pass() -> None:
    score = Sums(held=True)

    async def ask() -> int:
        own = batcher(score)
        giant = asyncio.create_task(own.rewards([[1] * 5] * 400))
        await asyncio.to_thread(score.began.wait)
        small = asyncio.create_task(own.rewards([[7]]))
        await asyncio.sleep(0)
        score.let_go.set()
        assert (await small).tolist() == [7]
        passed = len(score.batches)
        assert (await giant).tolist() == [5] * 400
        return passed

    assert asyncio.run(ask()) <= 3
    assert len(score.batches) >= 100


def test_what_is_cancelled_is_not_scored_any_more() -> None:
    score = Sums(held=True)

    async def ask() -> None:
        own = batcher(score)
        first = asyncio.create_task(own.rewards([[1] * 20]))
        await asyncio.to_thread(score.began.wait)
        gone = asyncio.create_task(own.rewards([[2] * 20] * 50))
        stays = asyncio.create_task(own.rewards([[3] * 20]))
        await asyncio.sleep(0)
        assert own.waiting == 51 * 20
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert own.waiting == 20
        score.let_go.set()
        assert (await first).tolist() == [20]
        assert (await stays).tolist() == [60]

    asyncio.run(ask())
    assert [2] * 20 not in [row for batch in score.batches for row in batch]


def test_what_would_wait_too_long_is_refused_with_the_time_to_ask_again() -> None:
    score = Sums(held=True)

    async def ask() -> None:
        own = batcher(score, queue_tokens=100)
        first = asyncio.create_task(own.rewards([[1] * 20]))
        await asyncio.to_thread(score.began.wait)
        small = [asyncio.create_task(own.rewards([[1] * 10])) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as busy:
            await own.rewards([[1]])
        assert busy.value.seconds >= 1
        assert "ask again in" in str(busy.value)
        score.let_go.set()
        assert len(await first) == 1
        assert len(await asyncio.gather(*small)) == 10
        assert (await own.rewards([[1]])).tolist() == [1]

    asyncio.run(ask())


def test_requests_of_many_batches_leave_room_for_the_others() -> None:
    score = Sums(held=True)

    async def ask() -> None:
        own = batcher(score, queue_tokens=100)
        with pytest.raises(TooLargeError, match="a request of 60 tokens; 50 fit"):
            await own.rewards([[1] * 20] * 3)
        first = asyncio.create_task(own.rewards([[1] * 20] * 2))
        await asyncio.to_thread(score.began.wait)
        with pytest.raises(BusyError):
            await own.rewards([[2] * 20] * 2)
        others = [asyncio.create_task(own.rewards([[3] * 10])) for _ in range(8)]
        await asyncio.sleep(0)
        score.let_go.set()
        await asyncio.gather(first, *others)
        assert len(await own.rewards([[2] * 20] * 2)) == 2

    asyncio.run(ask())


def test_a_row_that_fails_takes_only_its_own_request_along() -> None:
    def score(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if any(row[0] == 13 for row in rows):
            raise EngineError("no number")
        return np.array([sum(row) for row in rows], dtype=np.float32)

    async def ask() -> None:
        own = Batcher(score, batch_tokens=100, queue_tokens=1000)
        found = await asyncio.gather(*(own.rewards([[n], [n]]) for n in (11, 12, 13, 14)), return_exceptions=True)
        assert isinstance(found.pop(2), EngineError)
        assert [one.tolist() for one in found] == [[11, 11], [12, 12], [14, 14]]
        assert own.failures == 0

    asyncio.run(ask())


def test_a_fault_reaches_those_who_wait_and_the_next_are_served() -> None:
    # Each batch twice: with all of its rows, and each request's alone.
    faults = [EngineError("no number")] * 2 + [TypeError("a defect")] * 2

    def score(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if faults:
            raise faults.pop(0)
        return np.zeros(len(rows), dtype=np.float32)

    async def ask() -> None:
        own = Batcher(score, batch_tokens=10, queue_tokens=100)
        with pytest.raises(EngineError, match="no number"):
            await own.rewards([[1] * 10, [2] * 10])
        with pytest.raises(TypeError, match="a defect"):
            await own.rewards([[1]])
        assert own.failures > 0
        assert (await own.rewards([[1]])).tolist() == [0]
        assert (own.waiting, own.failures) == (0, 0)

    asyncio.run(ask())
