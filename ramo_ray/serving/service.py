"""One replica's work: texts read, rows scored in batches, and what came of it as numbers."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ramo_ray.core.records import Message
from ramo_ray.errors import EngineError
from ramo_ray.serving.batcher import Batcher, BusyError, TooLargeError
from ramo_ray.serving.gate import Refused
from ramo_ray.serving.reading import Reader, Row, as_messages
from ramo_ray.serving.schema import Trio
from ramo_ray.serving.scorer import RewardScorer
from ramo_ray.serving.settings import ServingSettings

T = TypeVar("T")
Explain = Callable[[list[Message], str, str], Awaitable[dict[str, Any]]]
WARM_TOKENS = (8, 64, 512)
"""Lengths of the rows that are scored before the first request: kernels are chosen then, and memory taken."""
ROUTES = {"/reward", "/compare", "/explain", "/get_reward", "/classify", "/score"}
"""Those that are counted by name."""
STUCK, FAILURES = 2.0, 5
"""When a replica counts as broken: deadlines that a batch has taken, and batches that failed in a row."""
SHORT = 16_384
"""Bytes of a body whose texts are read at once."""
LONG_BODIES = 4
"""Of the longest kind, that may wait to be read."""


class Scored(NamedTuple):
    """Rewards of rows, in order, and their tokens."""

    rewards: list[float]
    tokens: list[int]


class Service:
    """A reward model that answers requests. To be used within one event loop.

    Args:
        settings: what is served, and within which limits.
        explainer: explains a prompt and two responses, as `Explainer.explain` does; None where nothing does.
    """

    def __init__(self, settings: ServingSettings, explainer: Explain | None = None) -> None:
        self.settings, self.explainer = settings, explainer
        self.scorer = RewardScorer(
            Path(settings.model), dtype=settings.dtype, threads=settings.threads or os.cpu_count()
        )
        self.reader = Reader(settings, self.scorer.context_length, self.scorer.vocabulary)
        self._short, self._long = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("short", "long"))
        self._long_bytes = 0
        self.batcher = Batcher(
            self.scorer.score, batch_tokens=settings.batch_tokens, queue_tokens=settings.limits.queue_tokens
        )
        self.closing = False
        self.meters = Meters(self)
        self.warm_up()

    def warm_up(self) -> None:
        """Score rows of several lengths.

        Raises:
            EngineError: their rewards are not finite.
        """
        lengths = [min(length, self.scorer.context_length) for length in WARM_TOKENS]
        rewards = self.scorer.score([[number % 7 + 1 for number in range(length)] for length in lengths])
        if not np.isfinite(rewards).all():
            raise EngineError(f"{self.settings.model}: its rewards are not finite; take a wider dtype.")

    async def rewards(self, read: Callable[[T], list[Row]], asked: T, length: int) -> Scored:
        """Rewards of what was asked by a body of so many bytes.

        Raises:
            Refused: it cannot be read, too much waits, it took too long, or a reward is not finite.
        """
        if self.closing:
            raise Refused(503, "this replica is about to end.", 1)
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                rows = await self._read(read, asked, length)
                found = await self.batcher.rewards(rows)
        except BusyError as busy:
            raise Refused(429, str(busy), busy.seconds) from None
        except TooLargeError as large:
            raise Refused(413, str(large)) from None
        except TimeoutError:
            seconds = self.settings.limits.seconds
            raise Refused(503, f"no answer within {seconds:g} s; the work was dropped.", seconds) from None
        rewards = found.tolist()
        if bad := [place for place, reward in enumerate(rewards) if not math.isfinite(reward)]:
            raise Refused(422, f"item {bad[0]}: the reward model gives no finite number for it.")
        return Scored(rewards, list(map(len, rows)))

    async def _read(self, read: Callable[[T], list[Row]], asked: T, length: int) -> list[Row]:
        """Tokens of what was asked. Long requests queue apart, bounded, so that short ones need not wait for them."""
        loop = asyncio.get_running_loop()
        if length <= SHORT:
            return await loop.run_in_executor(self._short, read, asked)
        if self._long_bytes and self._long_bytes + length > self.settings.limits.body_bytes * LONG_BODIES:
            raise BusyError(self.batcher.seconds_waiting)
        self._long_bytes += length
        try:
            return await loop.run_in_executor(self._long, read, asked)
        finally:
            self._long_bytes -= length

    async def explained(self, asked: Trio, length: int) -> dict[str, Any]:
        """Why one of a trio's responses is preferred.

        Raises:
            Refused: nothing explains here, it cannot be read or explained, too much waits, or it took too long.
        """
        if self.explainer is None:
            raise Refused(404, "nothing explains here: the endpoint was started without `explain`.")
        limit = self.settings.limits.seconds
        try:
            async with asyncio.timeout(limit):
                await self._read(self.reader.trio, asked, length)
                found = await self.explainer(list(as_messages(asked.prompt)), asked.response_a, asked.response_b)
        except TimeoutError:
            raise Refused(503, f"no explanation within {limit:g} s.", limit) from None
        except BusyError as busy:
            raise Refused(429, str(busy), busy.seconds) from None
        if "error" in found:
            raise Refused(503, found["error"], limit) if found["again"] else Refused(422, found["error"])
        return found

    def calibrated(self, reward: float) -> float | None:
        """A reward in deviations from the mean of labelled responses."""
        scale = self.settings.calibration
        return None if scale is None else (reward - scale.mean) / scale.deviation

    def check(self) -> None:
        """Raise `EngineError` if a batch has been under way for too long, or all of late have failed."""
        began, stuck = self.batcher.began, STUCK * self.settings.limits.seconds
        if began is not None and time.monotonic() - began > stuck:
            raise EngineError(f"a batch has been under way for over {stuck:g} s.")
        if self.batcher.failures >= FAILURES:
            raise EngineError(f"the last {self.batcher.failures} batches have failed.")

    async def close(self) -> None:
        """Finish what was asked, and end the threads."""
        self.closing = True
        await self.batcher.close()
        self._short.shutdown()
        self._long.shutdown()


class Meters:
    """What a replica tells Prometheus."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ramo_reward_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ramo_reward_request_seconds", "Seconds until an answer, by route.", ["route"], registry=self.registry
        )
        told: dict[str, tuple[str, Callable[[], float]]] = {
            "ramo_reward_waiting_tokens": ("Tokens that wait.", lambda: service.batcher.waiting),
            "ramo_reward_scored_rows": ("Rows scored since the start.", lambda: service.batcher.scored),
            "ramo_reward_batches": ("Batches since the start.", lambda: service.batcher.batches),
            "ramo_reward_computed_tokens": ("Tokens that went through the model.", lambda: service.scorer.computed),
            "ramo_reward_busy_seconds": ("Seconds in the model.", lambda: service.batcher.busy_s),
        }
        for name, (meaning, read) in told.items():
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered. Paths that anybody may make up are one."""
        route = path if path in ROUTES else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
