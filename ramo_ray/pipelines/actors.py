"""How the pipelines' actor pools are sized, how they tell of their progress, and what their servers counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping
from typing import Any

from ramo_ray.engines.base import Usage
from ramo_ray.settings import ActorSettings

IN_FLIGHT = 2
"""Batches queued or running at an actor. The next is ready when one ends, and Ray Data grows a pool only above 1.75."""
RESTARTS = 3


def pool_options(actors: ActorSettings) -> dict[str, Any]:
    """Arguments of `map_batches` for an autoscaling pool of these actors.

    Ray's own default restarts an actor and repeats its batch for ever; here both are bounded.
    """
    import ray

    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=actors.min, max_size=actors.max, max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
        "num_cpus": actors.num_cpus,
        "num_gpus": actors.num_gpus,
        "max_restarts": RESTARTS,
        "max_task_retries": RESTARTS,
    }


class Bill:
    """Writes what an actor's server counts into the groups that the actor was given."""

    def __init__(self) -> None:
        self.counted = Usage()

    def charge(self, group: MutableMapping[str, Any], usage: Usage) -> None:
        """Add what was counted since the last batch to one of the batch's groups: only sums are read."""
        used, self.counted = usage.since(self.counted), usage
        if used.requests:
            group.update({name: (group.get(name) or 0) + value for name, value in used._asdict().items()})


class Meter:
    """Sums what actors report, for a display that polls it. Not exact where a batch is repeated: tables are."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()

    def add(self, **amounts: float) -> None:
        """Add to the sums by name."""
        self.sums.update(amounts)

    def totals(self) -> dict[str, float]:
        """The sums by name."""
        return dict(self.sums)
