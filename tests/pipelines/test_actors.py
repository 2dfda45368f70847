"""Pools over several kinds of machines: which kind a new actor takes."""

from __future__ import annotations

from typing import Any

import pytest
from support import wait_until

from ramo_ray.pipelines.actors import KindChooser, lives
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
    wait_until(lambda: not lives(names[0]), 30)
    assert choose()["num_cpus"] == 0.1
