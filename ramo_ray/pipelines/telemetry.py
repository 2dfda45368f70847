"""What actors tell Prometheus through Ray: the metrics of the dashboard in `cluster/grafana`.

Ray puts `ray_` before each name, and gives each its node, its worker and its job.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
MASSES = [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99]


class Telemetry:
    """The metrics of one actor, by the stage that it works for."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter, Histogram

        about: dict[str, Any] = {"tag_keys": ("stage",)}
        self.calls = Counter("ramo_calls", "Judge calls (prompts scored).", **about)
        self.tokens = Counter("ramo_tokens", "Tokens of prompts.", tag_keys=("stage", "kind"))
        self.errors = Counter("ramo_errors", "Rows without an answer.", **about)
        self.mass = Histogram("ramo_label_mass", "Share of probability that labels had.", boundaries=MASSES, **about)
        self.seconds = Histogram("ramo_call_seconds", "Seconds a call.", boundaries=SECONDS, **about)
        self.tags = {"stage": stage}
        for metric in (self.calls, self.errors, self.mass, self.seconds, self.tokens):
            metric.set_default_tags(self.tags)

    def tell(
        self, *, calls: int, seconds: float, tokens: int, computed: int, errors: int, masses: Iterable[float]
    ) -> None:
        """Add what one batch gave."""
        for metric, amount in ((self.calls, calls), (self.errors, errors)):
            if amount:
                metric.inc(amount)
        for kind, amount in (("computed", computed), ("cached", tokens - computed)):
            if amount > 0:
                self.tokens.inc(amount, {"kind": kind})
        if calls:
            self.seconds.observe(seconds / calls)
        for mass in masses:
            self.mass.observe(mass)


class RunGauges:
    """Where a run stands, told by its driver."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Gauge

        self.gauges = {
            "done": Gauge("ramo_rows_done", "Members of the run that are done.", tag_keys=("stage",)),
            "total": Gauge("ramo_rows_total", "Members of the run.", tag_keys=("stage",)),
            "queued": Gauge("ramo_rows_queued", "Members of the run that are still to come out.", tag_keys=("stage",)),
            "actors": Gauge("ramo_actors", "Actors at work.", tag_keys=("stage",)),
            "under_way": Gauge("ramo_batches_under_way", "Batches that actors have begun.", tag_keys=("stage",)),
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags({"stage": stage})

    def tell(self, **values: float) -> None:
        """Set some of `done`, `total`, `queued`, `actors` and `under_way`."""
        for name, value in values.items():
            self.gauges[name].set(value)
