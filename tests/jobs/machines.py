"""A program for test_stopping: rates on a cluster of its own, whose nodes are of two kinds, and go while it works.

One node is drained, which a third stands in for; when its actor has moved there, the only node of the better kind is
killed, with a batch under way. Writes what came of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import works
from ray import cloudpickle
from works import RULES, rating_work, scripted, write_trios

from jobs.flow import Work, run_groups
from ramo_ray.pipelines.rating import RuleJudge

TRIOS, BATCH, LATENCY_S = 30, 2, 0.6
BATCHES_BEFORE, BATCHES_AFTER = 3, 2
KINDS = {
    "min": 1,
    "max": 2,
    "num_cpus": 1,
    "kinds": [{"resources": {"better": 1}, "max": 1}, {"resources": {"good": 1}, "max": 1}],
}
NOTES, HELD, HURRY = "notes", "held", "hurry"
FOUND = "found.json"
"""What came of it; the terminal is Ray's, too."""
NOTICED = {"health_check_period_ms": 500}
"""Ray takes a node for dead when five of these have failed: after two and a half seconds instead of fifteen."""
# Workers cannot import what only tests can.
cloudpickle.register_pickle_by_value(works)


class PlacedJudge(RuleJudge):
    """A judge that notes on which node it works on each batch.

    One on a node that the file `HELD` names stops in mid-batch; where there is a file `HURRY` it answers at once.
    """

    def __init__(self, settings: dict[str, Any], folder: str, overseer: Any) -> None:
        import ray

        super().__init__(settings, RULES, "all_rules", overseer)
        self.notes, self.held, self.hurry = (Path(folder) / name for name in (NOTES, HELD, HURRY))
        self.node, self.batches = ray.get_runtime_context().get_node_id(), 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.hurry.exists():
            self.engine.latency_s = 0.0
        rated = super().__call__(batch)
        self.batches += 1
        while self.batches > BATCHES_BEFORE and self.held.exists() and self.node in self.held.read_text():
            time.sleep(0.1)
        with self.notes.open("a") as stream:
            stream.write(f"{time.time()} {self.node}\n")
        return rated


def placed_work(
    folder: Path,
    model: str,
    actors: dict[str, Any],
    latency_s: float,
    before: Callable[[Any], Any] | None = None,
) -> Work:
    """Rate a folder's trios.jsonl by a `PlacedJudge`."""
    settings = scripted(model, batch=BATCH, latency_s=latency_s, actors=actors)
    return rating_work(folder, settings, PlacedJudge, {"folder": str(folder)}, part=BATCH, before=before)


def batches_of(folder: Path) -> list[tuple[float, str]]:
    """When each batch ended, and where."""
    notes = folder / NOTES
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [(float(line.split()[0]), line.split()[1]) for line in lines]


def wait_for(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.1)


class Machines:
    """What becomes of the nodes while a run goes on."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        add = partial(cluster.add_node, num_cpus=2, object_store_memory=10**8)
        self.better, self.good = add(resources={"better": 1}), [add(resources={"good": 1}) for _ in range(2)]
        # However fast they are: they shall have work under way when they are drained or killed, and leave some.
        self._hold(self.better, *self.good)
        self.drained_at = 0.0
        self.drained = self.stands_in = ""

    def go(self) -> None:
        """Drain the node where an actor of the good kind works; then kill the node of the better one."""
        good, better = {node.node_id for node in self.good}, self.better.node_id
        wait_for(lambda: min(self._at(better), sum(map(self._at, good))) >= BATCHES_BEFORE)
        self.drained = next(node for _, node in reversed(batches_of(self.folder)) if node in good)
        (self.stands_in,) = good - {self.drained}
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "goes"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address]
        subprocess.run([*command, "--node-id", self.drained, *words], check=True, capture_output=True)
        self.drained_at = time.time()
        self._hold(self.better)
        wait_for(lambda: self._at(self.stands_in) >= BATCHES_AFTER)
        self.cluster.remove_node(self.better, allow_graceful=False)

    def _hold(self, *nodes: Any) -> None:
        held = self.folder / HELD
        held.with_suffix(".new").write_text(" ".join(node.node_id for node in nodes))
        held.with_suffix(".new").replace(held)

    def _at(self, node: str) -> int:
        return sum(place == node for _, place in batches_of(self.folder))


def main(folder: Path, model: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    # The overseer is where the driver is, on the head; actors fit on the other nodes only.
    head = {"num_cpus": 1, "object_store_memory": 2 * 10**8, "_system_config": NOTICED}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        (folder / FOUND).write_text(json.dumps(come_and_go(cluster, folder, model)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def come_and_go(cluster: Any, folder: Path, model: str) -> dict[str, Any]:
    """Rate while the machines come and go; what was seen."""
    import ray

    machines = Machines(cluster, folder)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    write_trios(folder, TRIOS)
    given = placed_work(folder, model, KINDS, LATENCY_S)
    thread = threading.Thread(target=machines.go, daemon=True)
    thread.start()
    result = run_groups(given)
    thread.join(timeout=10)
    rated = Counter(given.store.read("ratings", ["conversation_id"])["conversation_id"].to_pylist())
    ended = batches_of(folder)
    return {
        "rated": len(rated),
        "most": max(rated.values()),
        "counts": result.counts,
        "batches": Counter(_name(machines, node) for _, node in ended),
        "at_the_drained_later": sum(at > machines.drained_at and node == machines.drained for at, node in ended),
    }


def _name(machines: Machines, node: str) -> str:
    names = {machines.better.node_id: "killed", machines.drained: "drained", machines.stands_in: "stands_in"}
    return names[node]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
