"""How fast a run goes, when it will be done and what it has cost: from what its actors report, over the last minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

WINDOW_SECONDS = 60.0


class Moment(NamedTuple):
    """A run at one time. Rates are those of the last minute; `eta_seconds` is None while nothing has come out."""

    done: int
    total: int
    rows_per_second: float
    calls_per_second: float
    cached_share: float
    actors: int
    eta_seconds: float | None
    cost: float
    stopping: bool

    def line(self) -> str:
        """The moment in a few words."""
        words = ["stopping: what is under way is ended"] if self.stopping else []
        words += [f"{self.actors} actors", f"{self.rows_per_second:.2f} rows/s"]
        if self.calls_per_second:
            words += [f"{self.calls_per_second:,.1f} calls/s", f"{self.cached_share:.0%} of tokens shared"]
        return " · ".join([*words, *([f"cost {self.cost:,.2f}"] if self.cost else [])])

    def record(self) -> dict[str, Any]:
        """The moment as the manifest has it."""
        return {"at": datetime.now(UTC).isoformat(timespec="seconds"), **self._asdict()}


class Pace:
    """Takes the actors' sums as they grow.

    Args:
        total: members of the run, and `done` those that were done before it began.
        price: of an actor's hour.
        spent: what the run had cost before.
    """

    def __init__(self, total: int, done: int, price: float, spent: float = 0.0) -> None:
        self.total, self.begun_with, self.price, self.spent = total, done, price, spent
        self.past: deque[tuple[float, Mapping[str, float]]] = deque()

    def moment(self, sums: Mapping[str, float], written: float, *, stopping: bool = False) -> Moment:
        """The moment at which the sums are these and so many members were written."""
        now = time.monotonic()
        self.past.append((now, {**sums, "written": written}))
        while len(self.past) > 2 and now - self.past[1][0] >= WINDOW_SECONDS:
            self.past.popleft()
        began, first = self.past[0]
        seconds = now - began
        rates = {
            key: (self.past[-1][1].get(key, 0) - first.get(key, 0)) / seconds if seconds else 0.0
            for key in ("written", "calls")
        }
        done = min(self.begun_with + int(written), self.total)
        tokens = sums.get("tokens", 0)
        return Moment(
            done=done,
            total=self.total,
            rows_per_second=round(rates["written"], 4),
            calls_per_second=round(rates["calls"], 4),
            cached_share=round(max(0.0, 1 - sums.get("computed", 0) / tokens), 4) if tokens else 0.0,
            actors=int(sums.get("actors", 0)),
            eta_seconds=round((self.total - done) / rates["written"], 1) if rates["written"] else None,
            cost=round(self.spent + sums.get("actor_seconds", 0) / 3600 * self.price + sums.get("cost", 0), 4),
            stopping=stopping,
        )
