"""A program for test_stopping: rates on a cluster of its own, whose nodes are of two kinds, and go while it works.

One node is drained, which a third stands in for; when its actor has moved there, the only node of the better kind is
killed. Prints as JSON what came of it.
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

from jobs.flow import Work, run_groups
from ramo_ray.core.rules import make_pool
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.progress import Goal
from ramo_ray.pipelines.rating import RuleJudge, rated_rows
from ramo_ray.pipelines.sources import open_trios
from ramo_ray.pipelines.store import PartStore
from ramo_ray.settings import JudgeSettings, SourceSettings

RULES = ["Accept the response that is polite.", "Accept the response that is short."]
BATCHES_BEFORE, BATCHES_AFTER = 3, 2


class PlacedJudge(RuleJudge):
    """A judge that notes on which node it works on each batch."""

    def __init__(self, settings: dict[str, Any], overseer: Any, notes: str) -> None:
        super().__init__(settings, RULES, "all_rules", overseer)
        self.notes = Path(notes)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray

        rated = super().__call__(batch)
        with self.notes.open("a") as stream:
            stream.write(f"{time.time()} {ray.get_runtime_context().get_node_id()}\n")
        return rated


KINDS = {
    "min": 1,
    "max": 2,
    "num_cpus": 1,
    "kinds": [{"resources": {"better": 1}, "max": 1}, {"resources": {"good": 1}, "max": 1}],
}


def placed_work(folder: Path, model: str, actors: dict[str, Any], latency_s: float = 0.6) -> Work:
    """Rate a folder's trios.jsonl by a `PlacedJudge`."""
    settings = JudgeSettings.model_validate(
        {
            "engine": "scripted",
            "model": model,
            "layout": "rule_last",
            "batch_size": 2,
            "scripted": {"latency_s": latency_s},
            "actors": actors,
        }
    )
    pool = make_pool("judge", RULES, origin="here")

    def through(groups: Any, overseer: Any) -> Any:
        given = {"settings": settings.model_dump(mode="json"), "overseer": overseer, "notes": str(folder / "notes")}
        return groups.map_batches(
            PlacedJudge,
            fn_constructor_kwargs=given,
            batch_format="pyarrow",
            batch_size=settings.batch_size,
            **pool_options(settings.actors, overseer),
        )

    return Work(
        title="rating",
        source=open_trios(str(folder / "trios.jsonl"), SourceSettings(), None),
        shares=None,
        wanted=[""],
        store=PartStore(str(folder / "data"), ("ratings",)),
        goal=Goal("conversations", "ratings", 3, tuple(pool.ids)),
        block=2,
        part=2,
        through=through,
        convert=partial(rated_rows, fingerprint="f"),
        actors=settings.actors,
    )


def batches_of(notes: Path) -> list[tuple[float, str]]:
    """When each batch ended, and where."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [(float(line.split()[0]), line.split()[1]) for line in lines]


def wait_for(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.1)


class Machines:
    """What becomes of the nodes while a run goes on."""

    def __init__(self, cluster: Any, notes: Path) -> None:
        self.cluster, self.notes = cluster, notes
        add = partial(cluster.add_node, num_cpus=2, object_store_memory=10**8)
        self.better, self.good = add(resources={"better": 1}), [add(resources={"good": 1}) for _ in range(2)]
        self.times: dict[str, float] = {}
        self.drained = self.stands_in = ""

    def go(self) -> None:
        """Drain the node where an actor of the good kind works; then kill the node of the better one."""
        good, better = {node.node_id for node in self.good}, self.better.node_id
        wait_for(lambda: min(self._at(better), sum(map(self._at, good))) >= BATCHES_BEFORE)
        self.drained = next(node for _, node in reversed(batches_of(self.notes)) if node in good)
        (self.stands_in,) = good - {self.drained}
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "goes"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address]
        subprocess.run([*command, "--node-id", self.drained, *words], check=True, capture_output=True)
        self.times["drained"] = time.time()
        wait_for(lambda: self._at(self.stands_in) >= BATCHES_AFTER)
        self.cluster.remove_node(self.better, allow_graceful=False)
        self.times["killed"] = time.time()

    def _at(self, node: str) -> int:
        return sum(place == node for _, place in batches_of(self.notes))


def main(folder: Path, model: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    # The overseer is where the driver is, on the head; actors fit on the other nodes only.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2 * 10**8})
    try:
        print(json.dumps(come_and_go(cluster, folder, model)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def come_and_go(cluster: Any, folder: Path, model: str) -> dict[str, Any]:
    """Rate while the machines come and go; what was seen."""
    import ray

    machines = Machines(cluster, folder / "notes")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    given = placed_work(folder, model, KINDS)
    thread = threading.Thread(target=machines.go, daemon=True)
    thread.start()
    result = run_groups(given)
    thread.join(timeout=10)
    rated = Counter(given.store.read("ratings", ["conversation_id"])["conversation_id"].to_pylist())
    ended = batches_of(machines.notes)
    # What was under way when the node was drained has ended within two batches.
    since = machines.times["drained"] + 2.5
    return {
        "rated": len(rated),
        "most": max(rated.values()),
        "counts": result.counts,
        "at_the_drained_later": sum(at > since and node == machines.drained for at, node in ended),
        "at_the_killed_later": sum(
            at > machines.times["killed"] + 1 and node == machines.better.node_id for at, node in ended
        ),
        "after_the_kill": sum(at > machines.times["killed"] for at, _ in ended),
        "batches": len(ended),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
