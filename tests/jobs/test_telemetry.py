"""What a run tells Prometheus, as Ray's own endpoint gives it out: everything that the dashboard in `cluster` draws."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from pathlib import Path

import pytest
from fragile import fragile_work
from support import ROOT, wait_until

from jobs.flow import run_groups

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
DASHBOARD = ROOT / "cluster" / "grafana" / "ramo_ray.json"
STAGE = "telemetry"
"""Not a job's: other tests tell the same Ray of those."""


def scraped() -> dict[str, float]:
    """The values of this Ray's metrics by name and labels."""
    import ray

    found: dict[str, float] = {}
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith("ray_ramo_"):
                    name, value = line.rsplit(" ", 1)
                    found[name] = float(value)
    return found


def test_all_that_the_dashboard_draws_is_told(tmp_path: Path, long_context_model: Path) -> None:
    drawn = set(re.findall(r"ray_ramo_\w+", DASHBOARD.read_text()))
    assert len(drawn) >= 8
    seen: dict[str, float] = {}

    def total(name: str) -> float:
        ours = (key for key in list(seen) if key.startswith(f"{name}{{") and f'stage="{STAGE}"' in key)
        return sum(seen[key] for key in ours)

    ended = threading.Event()
    # Beside the run: what its driver told ends with it.
    watcher = threading.Thread(target=watch, args=(seen, ended), daemon=True)
    watcher.start()
    try:
        run_groups(fragile_work(tmp_path, str(long_context_model), 12, told_as=STAGE))
        # Nothing went wrong, so nothing is told of errors.
        names = drawn - {"ray_ramo_errors_total"}
        wait_until(lambda: names <= {key.split("{")[0] for key in list(seen)})
        counted = "ray_ramo_calls_total", "ray_ramo_label_mass_count"
        wait_until(lambda: all(total(name) == 12 * 2 * 2 for name in counted))
    finally:
        ended.set()
        watcher.join()


def watch(seen: dict[str, float], ended: threading.Event) -> None:
    """Scrape once a second; counters only grow."""
    while not ended.wait(1):
        seen.update(scraped())


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"title", "panels", "schemaVersion", "templating", "uid"} <= set(dashboard)
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in dashboard["panels"]]
    assert all(x + w <= 24 for x, _, w, _ in places)
    for first, (x, y, w, h) in enumerate(places):
        for other in places[first + 1 :]:
            assert x + w <= other[0] or other[0] + other[2] <= x or y + h <= other[1] or other[1] + other[3] <= y
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
