"""The endpoint under mixed load, with its replica killed twice: no wrong answer, only errors that may be asked again.

Run by `make bench-serving-chaos`. Prints a table, and writes runs/bench/serving_chaos.json: requests, wrong answers,
errors by kind, and the replica's memory at a tenth of the time and at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import endpoints
import psutil
from serving import WORDS, reward_model
from support import ROOT
from workload import publish

from ramo_ray.client import EndpointError, RewardClient
from ramo_ray.models.reward import RewardModel
from ramo_ray.models.templates import load_tokenizer, reward_token_ids

CLIENTS, CONVERSATIONS, LAYERS = 16, 200, 2
TOLERANCE = 1e-3
KILLS = (0.3, 0.6)
"""When the replica is killed, as shares of the time."""
MIB = 2**20


def conversations() -> list[dict[str, str]]:
    random = Random(0)
    return [
        {name: " ".join(random.choices(WORDS, k=random.randint(1, 80))) for name in ("prompt", "response")}
        for _ in range(CONVERSATIONS)
    ]


def expected(model: Path, asked: list[dict[str, str]]) -> list[float]:
    """Rewards by the model itself, one by one."""
    tokenizer, own = load_tokenizer(model), RewardModel(model)
    rows = [reward_token_ids(tokenizer, [{"role": "user", "content": one["prompt"]}], one["response"]) for one in asked]
    return [float(own.score([row])[0]) for row in rows]


class Users:
    """Clients that ask for one reward, for many, or for a comparison, and look at what they get."""

    def __init__(self, url: str, asked: list[dict[str, str]], own: list[float]) -> None:
        self.url, self.asked, self.own = url, asked, own
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def run(self, seed: int) -> None:
        """Ask until told to stop. Nothing is asked again here: each error is counted."""
        random = Random(seed)
        with RewardClient(self.url, patience_s=0.0) as client:
            while not self.stop.is_set():
                many = random.sample(range(len(self.asked)), random.choice((1, 1, 1, 2, 8, 64)))
                try:
                    found = client.rewards([self.asked[place] for place in many])
                except EndpointError as error:
                    self._count("lost connections" if error.status is None else f"status {error.status}")
                    # As Retry-After would have it.
                    self.stop.wait(1.0)
                    continue
                wrong = sum(abs(a - self.own[place]) > TOLERANCE for a, place in zip(found, many, strict=True))
                self._count("requests")
                self._count("wrong", wrong)

    def _count(self, name: str, by: int = 1) -> None:
        with self.lock:
            self.counts[name] += by


def replica_of(server: psutil.Process) -> psutil.Process | None:
    """The process of the replica, as Ray names it."""
    for process in server.children(recursive=True):
        try:
            if "ServeReplica" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def resident(server: psutil.Process) -> float:
    """MiB of the replica; 0 where there is none now."""
    process = replica_of(server)
    return process.memory_info().rss / MIB if process else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ramo-serving-") as folder:
        model = reward_model(Path(folder), LAYERS)
        asked = conversations()
        users = Users("", asked, expected(model, asked))
        with endpoints.ours(model) as url:
            users.url = url
            measures = rounds(users, given.seconds)
    publish("serving_chaos", measures, given.output)


def rounds(users: Users, seconds: float) -> dict[str, Any]:
    """Have users ask while the replica is killed now and then."""
    server = next(
        process
        for process in psutil.Process().children()
        if any("jobs.serve_reward" in word for word in process.cmdline())
    )
    began, memory = time.monotonic(), list[tuple[float, float]]()
    kills = [share * seconds for share in KILLS]
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(users.run, seed) for seed in range(CLIENTS)]
        try:
            while (passed := time.monotonic() - began) < seconds:
                time.sleep(1)
                memory.append((passed, resident(server)))
                if kills and passed > kills[0] and (process := replica_of(server)):
                    kills.pop(0)
                    process.kill()
        finally:
            users.stop.set()
        for one in asking:
            one.result()
    # Since the last kill: each replica begins anew.
    last = [mib for passed, mib in memory if passed > (KILLS[-1] + 0.1) * seconds and mib]
    return {
        "seconds": seconds,
        "kills": len(KILLS) - len(kills),
        **{name: users.counts[name] for name in sorted(users.counts)},
        "memory_mib_after_a_while": last[0],
        "memory_mib_at_the_end": last[-1],
    }


if __name__ == "__main__":
    main()
