"""Pools over several kinds of machines: which kind a new actor takes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ramo_ray.pipelines.actors import KindChooser
from ramo_ray.settings import ActorSettings

KINDS = [{"num_cpus": 0.1, "max": 1}, {"num_cpus": 0.2, "max": 2}]


def started(options: dict[str, Any]) -> Any:
    import ray

    @ray.remote
    class Actor:
        def ping(self) -> None: ...

    actor = Actor.options(**options).remote()  # type: ignore[attr-defined]
    ray.get(actor.ping.remote())
    return actor


def gone(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name)
    except ValueError:
        return True
    return False


@pytest.mark.usefixtures("local_ray")
def test_the_best_kind_that_is_not_full_and_again_when_its_actor_has_gone() -> None:
    import ray

    choose = KindChooser(ActorSettings.model_validate({"max": 3, "kinds": KINDS}))
    actors, names = [], []
    for expected in (0.1, 0.2, 0.2):
        options = choose()
        assert options["num_cpus"] == expected
        actors.append(started(options))
        names.append(options["name"])
    ray.kill(actors[0])
    latest = time.monotonic() + 30
    while not gone(names[0]) and time.monotonic() < latest:
        time.sleep(0.05)
    assert choose()["num_cpus"] == 0.1
