"""Rates, time left and cost, from sums that grow."""

from __future__ import annotations

import pytest

from jobs import pace
from jobs.pace import Moment, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def sums(**values: float) -> dict[str, float]:
    return {"calls": 0, "tokens": 0, "computed": 0, "actors": 2, "actor_seconds": 0} | values


@pytest.mark.usefixtures("clock")
def test_nothing_has_come_out_yet() -> None:
    found = Pace(10, 4, 0.0).moment(sums(), 0)
    assert (found.done, found.total, found.rows_per_second, found.eta_seconds) == (4, 10, 0, None)
    assert "2 actors" in found.line()
    assert "cost" not in found.line()


def test_rates_are_those_of_the_last_minute(clock: list[float]) -> None:
    own = Pace(1000, 100, 6.0)
    own.moment(sums(), 0)
    for step in range(1, 25):
        clock[0] += 10
        # Twelve slow steps, then faster ones.
        written = step if step <= 12 else 12 + 10 * (step - 12)
        found = own.moment(
            sums(calls=100 * written, tokens=50 * written, computed=5 * written, actor_seconds=20 * step), written
        )
    assert found.rows_per_second == 1
    assert found.calls_per_second == 100
    assert found.cached_share == 0.9
    assert found.done == 100 + 132
    assert found.eta_seconds == 1000 - 232
    assert found.cost == pytest.approx(480 / 3600 * 6)
    assert found.line() == "2 actors · 1.00 rows/s · 100.0 calls/s · 90% of tokens shared · cost 0.80"


@pytest.mark.usefixtures("clock")
def test_what_is_written_again_is_not_more_than_all() -> None:
    found = Pace(10, 4, 0.0).moment(sums(), 9, stopping=True)
    assert found.done == 10
    assert found.line().startswith("stopping")


@pytest.mark.usefixtures("clock")
def test_cost_goes_on_from_what_was_spent() -> None:
    assert Pace(10, 4, 6.0, spent=2.5).moment(sums(actor_seconds=1200, cost=0.5), 1).cost == 5.0


@pytest.mark.usefixtures("clock")
def test_a_record_is_read_as_the_moment_it_was() -> None:
    found = Pace(10, 4, 1.0).moment(sums(calls=3, cost=0.5), 2)
    record = found.record()
    assert Moment(**{key: record[key] for key in Moment._fields}) == found
    assert record["at"].endswith("+00:00")
    assert found.cost == 0.5
