"""A program for test_elastic: rates on a cluster that grows from one worker node to three, and shrinks to one again.

There is a heap of work at first, until three nodes have worked a while, and then no more than comes in drop by drop;
the last drop waits for the nodes to have gone, so that they go while the run goes on. Ray's autoscaler decides, with
its provider of nodes that are processes on this machine. Writes how many nodes there were, and how fast it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import machines
import pyarrow as pa
from machines import BATCH, FOUND, HURRY, batches_of, placed_work
from ray import cloudpickle
from works import write_trios

from jobs.flow import run_groups
from jobs.session import set_up_ray_data

cloudpickle.register_pickle_by_value(machines)
HEAD_ID = "f" * 51 + "00000"
NODE = {"CPU": 2, "object_store_memory": 10**8}
ACTORS = {"min": 1, "max": 3, "num_cpus": 1.2}
HEAP, DROPS = 90, 3
"""Batches that are there at once, more than are needed, and those that come later."""
LATENCY_S, SECONDS_A_DROP = 1.2, 5.0
WINDOW_S = 4.0
"""In which rates are counted. When three nodes have worked together for longer, what is left of the heap goes fast."""
SHRUNK = "shrunk"
"""The file that says that one worker node was left, after three had worked."""
LAST_DROP_S = 180.0
"""The longest that the last drop waits; then the nodes did not go."""


class Trickle:
    """Lets a heap of batches pass at once, then one now and then, and the last when one worker node is left."""

    def __init__(self, folder: str) -> None:
        self.passed, self.shrunk = 0, Path(folder) / SHRUNK

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.passed += 1
        if self.passed > HEAP:
            time.sleep(SECONDS_A_DROP)
        latest = time.monotonic() + LAST_DROP_S
        while self.passed == HEAP + DROPS and not self.shrunk.exists() and time.monotonic() < latest:
            time.sleep(0.5)
        return batch


def workers() -> int:
    """Worker nodes that are up."""
    import ray

    return sum(node["Alive"] for node in ray.nodes()) - 1


def trickle(groups: Any, folder: Path) -> Any:
    """A stage that runs where the driver does, and takes nothing of the nodes that come and go."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return groups.map_batches(
        Trickle,
        fn_constructor_args=[str(folder)],
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
        num_cpus=0,
        scheduling_strategy=here,
    )


def free_port() -> int:
    """A port below those that Ray's workers take."""
    for port in Random().sample(range(7000, 10_000), 100):
        with socket.socket() as own, contextlib.suppress(OSError):
            own.bind(("", port))
            return port
    raise OSError("no port is free")


@contextlib.contextmanager
def autoscaling_cluster() -> Iterator[str]:
    """A head and its autoscaler, on ports of their own; ends the processes that it started, and no other."""
    import ray

    port, address = free_port(), ray.util.get_node_ip_address()
    config = {
        "cluster_name": "elastic",
        "max_workers": 3,
        # Four seconds.
        "idle_timeout_minutes": 0.07,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{address}:{port}",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "worker_liveness_check": False,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": NODE, "node_config": {}, "min_workers": 1, "max_workers": 3},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.yaml"
        file.write_text(json.dumps(config))
        words = ["start", "--head", "--block", f"--port={port}", f"--autoscaling-config={file}"]
        words += ["--num-cpus=0", f"--object-store-memory={2 * NODE['object_store_memory']}"]
        words += [
            f"--ray-client-server-port={free_port()}",
            "--include-dashboard=false",
            f"--node-ip-address={address}",
        ]
        own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        own["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD_ID
        with subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=os.environ | own,
            stdout=sys.stderr,
            start_new_session=True,
        ) as head:
            try:
                yield f"{address}:{port}"
            finally:
                head.send_signal(signal.SIGTERM)
                head.wait(timeout=60)


def watch(folder: Path, nodes: list[tuple[float, int]], ended: threading.Event) -> None:
    """Note how many nodes there are, and have the judges hurry when enough was seen of three at work."""
    while not ended.wait(0.5):
        nodes.append((time.time(), workers()))
        joined: dict[str, float] = {}
        for at, node in batches_of(folder):
            joined.setdefault(node, at)
        if not (folder / HURRY).exists():
            if len(joined) == 3 and time.time() - max(joined.values()) > 1.5 * WINDOW_S:
                (folder / HURRY).touch()
        elif workers() == 1:
            (folder / SHRUNK).touch()


def main(folder: Path, model: str) -> None:
    import ray

    with autoscaling_cluster() as address:
        for _ in range(100):
            with contextlib.suppress(ConnectionError, ValueError, RuntimeError):
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
                break
            time.sleep(0.3)
        set_up_ray_data()
        nodes: list[tuple[float, int]] = []
        ended = threading.Event()
        thread = threading.Thread(target=watch, args=(folder, nodes, ended), daemon=True)
        thread.start()
        write_trios(folder, BATCH * (HEAP + DROPS))
        given = placed_work(folder, model, ACTORS, LATENCY_S, partial(trickle, folder=folder))
        result = run_groups(given)
        ended.set()
        thread.join()
        rated = Counter(given.store.read("ratings", ["conversation_id"])["conversation_id"].to_pylist())
        batches = batches_of(folder)
        hurried = (folder / HURRY).stat().st_mtime
        within = [count for at, count in nodes if at <= batches[-1][0]]
        found = {
            "rated": len(rated),
            "most": max(rated.values()),
            "counts": result.counts,
            # As they changed, until the last batch ended.
            "nodes": [count for count, before in zip(within, [0, *within], strict=False) if count != before],
            "rate_by_nodes": rates([batch for batch in batches if batch[0] < hurried]),
        }
        (folder / FOUND).write_text(json.dumps(found))
        ray.shutdown()


def rates(batches: list[tuple[float, str]]) -> dict[int, float]:
    """Batches a second in the busiest window with so many nodes at work."""
    best: dict[int, float] = {}
    for start, _ in batches:
        inside = [(at, node) for at, node in batches if start <= at < start + WINDOW_S]
        count = len({node for _, node in inside})
        best[count] = max(best.get(count, 0.0), len(inside) / WINDOW_S)
    return best


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
