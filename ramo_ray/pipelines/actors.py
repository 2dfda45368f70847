"""How the pipelines' actor pools are sized, and what their servers counted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ramo_ray.engines.base import Engine, Usage
from ramo_ray.settings import ActorKind, ActorSettings

if TYPE_CHECKING:
    from ray.data import Dataset

SMALL = {"num_cpus": 0.1}
"""What tasks take that mostly wait for files, or only cut blocks."""
IN_FLIGHT = 2
"""Batches queued or running at an actor. The next is ready when one ends, and Ray Data grows a pool only above 1.75."""
FOR_EVER, SOME = -1, 3
"""Restarts, and repeats of a batch, as Ray counts them. Of a watched pool it is the overseer that bounds both, by what
they lead to: over days any fixed number would be reached."""


def pool_options(actors: ActorSettings, overseer: Any = None) -> dict[str, Any]:
    """Arguments of `map_batches` for an autoscaling pool of these actors, which keep a `Watched` if there is one."""
    import ray

    bound = SOME if overseer is None else FOR_EVER
    chosen = {"ray_remote_args_fn": KindChooser(actors)} if actors.kinds else {}
    return {
        **chosen,
        "compute": ray.data.ActorPoolStrategy(
            min_size=actors.min, max_size=actors.max, max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
        "num_cpus": actors.num_cpus,
        "num_gpus": actors.num_gpus,
        "max_restarts": bound,
        "max_task_retries": bound,
    }


def in_blocks(groups: Dataset, rows: int, tasks: int | None = None) -> Dataset:
    """Cut or join blocks to so many groups: a block is what an actor takes at a time, and what is committed.

    `repartition` takes no resources, and the whole CPU a task that it would take is never free where actors hold them
    all. With those, and the most `tasks` at a time, of a stage before it, Ray Data makes one stage of both.
    """
    blocks = groups.repartition(target_num_rows_per_block=rows)
    cutting = blocks._logical_plan.dag
    cutting.ray_remote_args.update(SMALL)
    cutting.compute.size = tasks
    return blocks


class KindChooser:
    """Decides, for each actor that Ray Data starts, on which kind of machine.

    The actors get names, by which those that a shrinking pool has let go are known.
    """

    def __init__(self, actors: ActorSettings) -> None:
        self.actors = actors
        self.names: list[list[str]] = [[] for _ in actors.kinds]

    def __call__(self) -> dict[str, Any]:
        import ray

        free = ray.available_resources()
        self.names = [[name for name in names if lives(name)] for names in self.names]
        taken = [len(names) / kind.max for names, kind in zip(self.names, self.actors.kinds, strict=True)]
        # Where none has room, the kind that is furthest from its most waits for machines to come.
        everything = [i for i, share in enumerate(taken) if share < 1] or list(range(len(taken)))
        waiting = min(everything, key=lambda i: taken[i])
        chosen = next((i for i in everything if self._has_room(self.actors.kinds[i], free)), waiting)
        self.names[chosen].append(f"ramo-{uuid.uuid4().hex}")
        return self._options(self.actors.kinds[chosen]) | {"name": self.names[chosen][-1]}

    def _options(self, kind: ActorKind) -> dict[str, Any]:
        return {
            "num_cpus": kind.num_cpus or self.actors.num_cpus,
            "num_gpus": self.actors.num_gpus if kind.num_gpus is None else kind.num_gpus,
            "resources": dict(kind.resources),
            **({"accelerator_type": kind.accelerator_type} if kind.accelerator_type else {}),
        }

    def _has_room(self, kind: ActorKind, free: Mapping[str, float]) -> bool:
        options = self._options(kind)
        needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
        if kind.accelerator_type:
            needed[f"accelerator_type:{kind.accelerator_type}"] = 0.001
        return all(free.get(name, 0) >= amount for name, amount in needed.items())


def lives(name: str) -> bool:
    """Whether an actor of this name is there."""
    import ray

    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


class Bill:
    """Writes what an actor's engine, and its server if it has one, count into the groups that the actor was given."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.usage, self.computed = engine, Usage(), engine.computed

    def charge(self, group: MutableMapping[str, Any]) -> dict[str, float]:
        """Add what was counted since the last batch to one of the batch's groups, as only sums are read.

        Returns:
            What a run shows while it goes on: tokens that were `computed` since, and what the server `cost`.
        """
        usage, computed = self.engine.usage, self.engine.computed
        used, fresh = usage.since(self.usage), computed - self.computed
        self.usage, self.computed = usage, computed
        amounts = {"computed": fresh} | (used._asdict() if used.requests else {})
        group.update({name: (group.get(name) or 0) + value for name, value in amounts.items()})
        return {"computed": fresh, "cost": used.cost}
