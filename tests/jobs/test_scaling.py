"""How many machines are asked for, by how busy the actors are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scaling import WINDOW_TICKS, Demand
from ramo_ray.settings import ActorSettings


def wanted(demand: Demand, busy: list[int]) -> int:
    return [demand.wanted(count) for count in busy][-1]


def test_one_more_while_all_are_busy_and_as_many_as_are_used_otherwise() -> None:
    demand = Demand(ActorSettings(min=1, max=3))
    assert wanted(demand, [1] * (WINDOW_TICKS - 1)) == 1
    assert demand.wanted(1) == 2
    assert wanted(demand, [2] * WINDOW_TICKS) == 3
    assert wanted(demand, [3] * WINDOW_TICKS) == 3
    # Work that comes drop by drop.
    assert wanted(demand, [0, 0, 0, 1] * WINDOW_TICKS) == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 8), st.integers(0, 30))
def test_never_fewer_than_the_least_nor_more_than_the_most(busy: list[int], least: int, more: int) -> None:
    demand = Demand(ActorSettings(min=least, max=least + more))
    assert all(least <= demand.wanted(count) <= least + more for count in busy)


@pytest.mark.parametrize(
    ("actors", "bundles"),
    [
        (ActorSettings(num_cpus=1.5), [{"CPU": 2}] * 5),
        (ActorSettings(num_cpus=1, num_gpus=1), [{"CPU": 1, "GPU": 1}] * 5),
        (ActorSettings(num_cpus=0.25), [{"CPU": 1}] * 2),
        (ActorSettings(num_cpus=4, num_gpus=0.5), [{"CPU": 8, "GPU": 1}] * 3),
    ],
)
def test_bundles_are_whole(actors: ActorSettings, bundles: list[dict[str, int]]) -> None:
    assert Demand(actors).bundles(5) == bundles
