"""When a request to a server goes out, and when it goes out again. Knows no HTTP; time comes from a `Clock`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Seconds before the first repetition, and before any; it doubles in between."""
LONGEST_ASKED = 300.0
"""Longest wait that a server may ask for; beyond it the request is given up."""


class Clock:
    """Time and chance as they are. A test hands in its own."""

    def now(self) -> float:
        """Seconds that only ever grow."""
        return time.monotonic()

    def today(self) -> datetime:
        """The date, which a server's `Retry-After` may refer to."""
        return datetime.now(UTC)

    def chance(self) -> float:
        """Uniform in [0, 1)."""
        return random.random()

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""
        await asyncio.sleep(seconds)


class Pace:
    """At most so many requests and so many tokens in any minute; None is no limit.

    Both are evenly spaced: no burst at the start that a server would refuse, and none of small requests that waited
    behind a long one.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock) -> None:
        self.seconds_per_request, self.seconds_per_token = map(_spacing, (requests_per_minute, tokens_per_minute))
        self.clock = clock
        self.free_from = 0.0

    async def wait(self, tokens: int) -> None:
        """Return when a request of that many tokens may go out."""
        now = self.clock.now()
        start = max(now, self.free_from)
        self.free_from = start + max(self.seconds_per_request, tokens * self.seconds_per_token)
        if start > now:
            await self.clock.sleep(start - now)


def _spacing(per_minute: float | None) -> float:
    return 60.0 / per_minute if per_minute else 0.0


def wait_before(repetition: int, asked: float | None, clock: Clock) -> float:
    """Seconds to wait before a request's first (0), second … repetition.

    Exponential, half of it by chance, so that requests that failed together do not return together. What the server
    asked for is the least.
    """
    growing = min(LONGEST_WAIT, FIRST_WAIT * 2.0**repetition)
    wait = growing * (0.5 + 0.5 * clock.chance())
    return wait if asked is None else max(wait, asked + FIRST_WAIT * clock.chance())


def asked_wait(headers: Mapping[str, str], clock: Clock) -> float | None:
    """Seconds that a reply's `Retry-After` asks for (a number or a date, RFC 9110 §10.2.3); None if it does not."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - clock.today()).total_seconds())
    except (ValueError, TypeError):
        return None
