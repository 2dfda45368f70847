"""How many machines a run asks Ray's autoscaler for: as many as its actors use, and one more while all are busy."""

from __future__ import annotations

import contextlib
import math
from collections import deque

from ramo_ray.settings import ActorSettings

WINDOW_TICKS = 10
SATURATED = 0.9
"""Share of its peak that the number of busy actors keeps, on average over the window, where the queue never ends."""


class Demand:
    """Follows how many actors are busy, tick by tick.

    Of a pool on several kinds of machines nothing is asked: an actor that waits for its kind says so itself.
    """

    def __init__(self, actors: ActorSettings) -> None:
        self.actors = actors
        self.busy: deque[int] = deque(maxlen=WINDOW_TICKS)
        self.asks = actors.max > actors.min and not actors.kinds

    def wanted(self, busy: int) -> int:
        """Actors to have room for, when so many are busy now."""
        self.busy.append(busy)
        average, peak = sum(self.busy) / len(self.busy), max(self.busy)
        saturated = len(self.busy) == WINDOW_TICKS and peak > 0 and average >= SATURATED * peak
        return min(self.actors.max, max(self.actors.min, peak + 1 if saturated else math.ceil(average)))

    def bundles(self, wanted: int) -> list[dict[str, int]]:
        """What so many actors take, as the autoscaler wants it: in whole CPUs and GPUs, small actors together."""
        cpus, gpus = self.actors.num_cpus, self.actors.num_gpus
        together = max(1, math.floor(1 / (gpus or cpus)))
        amounts = {"CPU": math.ceil(together * cpus), "GPU": math.ceil(together * gpus)}
        return [{name: amount for name, amount in amounts.items() if amount}] * math.ceil(wanted / together)


def ask(bundles: list[dict[str, int]]) -> None:
    """Have the autoscaler, if the cluster has one, make room for these; none takes the wish back.

    Ray Data asks as well, once in ten seconds, for one more of each node that there is, and holds on to all it has
    until a pipeline ends: nodes that a run does not need any more would stay. Whoever asked last counts.
    """
    from ray.autoscaler.sdk import request_resources

    with contextlib.suppress(ConnectionError):
        request_resources(bundles=bundles)
