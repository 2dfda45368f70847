"""When requests leave that all came at once: evenly, and within both limits."""

from __future__ import annotations

import asyncio

from scripted_server import FakeClock

from ramo_ray.engines.pacing import Pace


class StoppedClock(FakeClock):
    """Time does not pass, so each request's sleep says when it leaves."""

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)


def departures(pace: Pace, clock: StoppedClock, tokens: list[int]) -> list[float]:
    async def leave() -> list[float]:
        times = []
        for count in tokens:
            clock.sleeps.clear()
            await pace.wait(count)
            times.append(sum(clock.sleeps))
        return times

    return asyncio.run(leave())


def test_small_requests_behind_a_long_one_do_not_leave_together() -> None:
    clock = StoppedClock()
    tokens = [50_000, *[10] * 150, 30_000, *[10] * 100]
    times = departures(Pace(60, 60_000, clock), clock, tokens)
    assert times[:4] == [0, 50, 51, 52]
    for start in times:
        minute = [count for time, count in zip(times, tokens, strict=True) if start <= time < start + 60]
        assert len(minute) <= 60
        assert sum(minute) <= 60_000


def test_either_limit_alone_and_none() -> None:
    clock = StoppedClock()
    assert departures(Pace(30, None, clock), clock, [9, 99, 999]) == [0, 2, 4]
    assert departures(Pace(None, 600, clock), clock, [20, 40, 1]) == [0, 2, 6]
    assert departures(Pace(None, None, clock), clock, [9, 99, 999]) == [0, 0, 0]
