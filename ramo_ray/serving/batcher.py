"""Rows of many requests scored together, by tokens: bounded, fair, and nobody's once its request is gone.

A batch takes a row of each request in turn, so a request of thousands of rows takes no more of it than its share, and
one of a single row waits for one batch. What a request asked is dropped as soon as nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ramo_ray.errors import RamoError

Score = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
SMOOTHING = 0.2
"""Weight of the latest batch in the measured rate."""
LEAST_WAIT_S = 1.0
"""A shorter one cannot be told in a header that counts seconds."""


class BusyError(RamoError):
    """Too much waits already. `seconds` is when to ask again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"busy: ask again in {self.seconds:.0f} s, or ask for less at a time."


class TooLargeError(RamoError):
    """A request of more tokens than may ever wait of one."""


class _Asked:
    """A request's rows, those not yet scored, and where their rewards go."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = rows
        self.waiting = deque(range(len(rows)))
        self.tokens = sum(map(len, rows))
        self.missing = len(rows)
        self.rewards = np.empty(len(rows), dtype=np.float32)
        self.done: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        return not self.done.done()


class Batcher:
    """Scores rows of token ids in a thread of its own, a batch at a time. To be used within one event loop.

    Args:
        score: rows to rewards, in order. Called in one thread only.
        batch_tokens: most tokens of a batch; a longer row is one of its own.
        queue_tokens: most tokens that wait; what would exceed them is refused. Requests of more than a batch have half
            of it, so that there is always room for the others.

    Attributes:
        waiting: tokens that wait.
        scored: rows that were scored since the start, in so many `batches`, within `busy_s` seconds.
        failures: batches in a row that failed.
        began: when the batch that is under way began, by the monotonic clock; None while there is none.
    """

    def __init__(self, score: Score, *, batch_tokens: int, queue_tokens: int) -> None:
        self._score = score
        self.batch_tokens, self.queue_tokens = batch_tokens, queue_tokens
        self.waiting = self.scored = self.batches = self.failures = 0
        self._large = 0
        self.busy_s = 0.0
        self.began: float | None = None
        self._rate = 0.0
        self._asked: deque[_Asked] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._worker: asyncio.Task[None] | None = None

    async def rewards(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Rewards [n] of rows. A task that is cancelled takes its rows along.

        Raises:
            BusyError: too much waits already; it says after how many seconds to ask again.
            TooLargeError: it is more than may ever wait of one request.
        """
        if not rows:
            return np.empty(0, dtype=np.float32)
        asked, half = _Asked(rows), self.queue_tokens // 2
        large = asked.tokens if asked.tokens > self.batch_tokens else 0
        if large > half:
            raise TooLargeError(f"a request of {asked.tokens:,} tokens; {half:,} fit. Ask for less at a time.")
        if self.waiting + asked.tokens > self.queue_tokens or (large and self._large + large > half):
            raise BusyError(self.seconds_waiting)
        self.waiting += asked.tokens
        self._large += large
        self._asked.append(asked)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await asked.done
        finally:
            self.waiting -= sum(len(rows[place]) for place in asked.waiting)
            self._large -= large
            asked.waiting.clear()

    @property
    def seconds_waiting(self) -> float:
        """How long what waits takes, at the rate of late."""
        return max(LEAST_WAIT_S, self.waiting / self._rate if self._rate else LEAST_WAIT_S)

    async def _work(self) -> None:
        while batch := self._next_batch():
            if await self._scored(batch) is None:
                continue
            # One of them took the others along: each request's rows alone.
            for asked in {id(asked): asked for asked, _ in batch}.values():
                own = [(one, place) for one, place in batch if one is asked and one.wanted]
                error = await self._scored(own) if own else None
                if error is not None and asked.wanted:
                    asked.done.set_exception(error)

    async def _scored(self, batch: Sequence[tuple[_Asked, int]]) -> Exception | None:
        """Score rows, and give their requests what they wait for; or the error."""
        rows = [asked.rows[place] for asked, place in batch]
        started = self.began = time.monotonic()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, rows)
        except Exception as error:  # noqa: BLE001 - it is raised where the rewards are waited for
            self.failures += 1
            return error
        finally:
            self.began = None
        self.failures = 0
        self._account(rows, time.monotonic() - started)
        for (asked, place), reward in zip(batch, found, strict=True):
            asked.rewards[place] = reward
            asked.missing -= 1
            if not asked.missing and asked.wanted:
                asked.done.set_result(asked.rewards)
        return None

    def _account(self, rows: Sequence[Sequence[int]], seconds: float) -> None:
        rate = sum(map(len, rows)) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else (1 - SMOOTHING) * self._rate + SMOOTHING * rate
        self.scored += len(rows)
        self.batches += 1
        self.busy_s += seconds

    def _next_batch(self) -> list[tuple[_Asked, int]]:
        """A row of each request in turn, as many as fit; a request that was not served whole stands first next time."""
        batch: list[tuple[_Asked, int]] = []
        tokens = 0
        turns = deque(asked for asked in self._asked if asked.wanted and asked.waiting)
        while turns:
            asked = turns[0]
            length = len(asked.rows[asked.waiting[0]])
            if batch and tokens + length > self.batch_tokens:
                break
            turns.popleft()
            batch.append((asked, asked.waiting.popleft()))
            tokens += length
            if asked.waiting:
                turns.append(asked)
        self.waiting -= tokens
        # Those whose turn it is come first, then those that were served.
        self._asked = turns
        return batch

    async def close(self) -> None:
        """Score what waits, and end the thread."""
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()
