"""Asks a run's overseer each second how far it is, for display, manifest and metrics; and tells it to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.pace import Moment, Pace
from jobs.scaling import Demand, ask
from jobs.session import at_sigterm
from ramo_ray.errors import StoppedError
from ramo_ray.pipelines.telemetry import RunGauges

TICK_SECONDS = 1.0
STUCK_TICKS = 10
"""Ticks without an actor, and with nothing new, after which a run that was asked to end is asked again."""
ANSWER_SECONDS = 10.0
"""An overseer that takes longer is asked again at the next tick: the display is not worth a run."""

ASKED = threading.Event()
"""Set when this process was asked to end (SIGTERM) while a stage went through its groups, also in its last batch."""


class Observer:
    """A thread beside a round of a run.

    Args:
        overseer: handle of the run's `Overseer`.
        pace: what makes rates of sums; `demand` decides for how many actors there should be machines.
        gauges: the run's metrics.
        written: which of the overseer's sums counts members; `before` of them were written in earlier rounds.
        tell: takes each moment, for those who look at the run from elsewhere.
        stop: set when the run shall end.
    """

    def __init__(
        self,
        overseer: Any,
        *,
        pace: Pace,
        demand: Demand,
        gauges: RunGauges,
        written: str,
        before: float,
        tell: Callable[[Moment], None] | None,
        stop: threading.Event,
    ) -> None:
        self.overseer, self.pace, self.demand, self.gauges = overseer, pace, demand, gauges
        self.written, self.before, self.tell, self.stop = written, before, tell, stop
        self.now: Moment | None = None
        self.stuck = 0
        self._fault: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.demand.asks:
            ask([])
        if self._fault:
            raise self._fault

    def line(self) -> tuple[float, str]:
        """What is done, and the latest rates in a few words."""
        return (self.pace.begun_with, "") if self.now is None else (self.now.done, self.now.line())

    def _run(self) -> None:
        import ray

        ended = False
        while not ended:
            ended = self._ended.wait(TICK_SECONDS)
            try:
                self._tick()
            except (ray.exceptions.RayError, OSError):
                # Whatever ails Ray is raised where the work is done; a full disk is no reason not to be told to stop.
                continue
            except Exception as fault:  # noqa: BLE001 (raised again by who waits for this thread)
                self._fault = fault

    def _tick(self) -> None:
        import ray

        stopping = self.stop.is_set()
        if stopping:
            ray.get(self.overseer.stop.remote(), timeout=ANSWER_SECONDS)
        ray.get(self.overseer.release.remote(), timeout=ANSWER_SECONDS)
        sums: Mapping[str, float] = ray.get(self.overseer.totals.remote(), timeout=ANSWER_SECONDS)
        before, self.now = self.now, self.pace.moment(sums, sums.get(self.written, 0) - self.before, stopping=stopping)
        # Blocks that are queued for a pool would wait until there is an actor to say that it begins nothing any more.
        moves = not stopping or before is None or self.now.actors > 0 or self.now.done > before.done
        self.stuck = 0 if moves else self.stuck + 1
        if self.stuck == STUCK_TICKS:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if self.demand.asks:
            ask(self.demand.bundles(self.demand.wanted(int(sums["busy"]))))
        self.gauges.tell(
            done=self.now.done,
            total=self.now.total,
            queued=self.now.total - self.now.done,
            actors=self.now.actors,
            under_way=sums["under_way"],
        )
        if self.tell:
            self.tell(self.now)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Set an event at SIGTERM instead of ending, and end at a second one.

    Elsewhere than in the main thread signals stay as they are.
    """
    ASKED.clear()

    def asked() -> None:
        if ASKED.is_set():
            raise StoppedError("stopped at once, as asked again; run the same command again to continue.")
        ASKED.set()

    with at_sigterm(asked):
        yield ASKED
