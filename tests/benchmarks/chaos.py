"""What a run survives, at length: its driver killed at 20 random moments; a row that kills, among 500.

Run by `make bench-chaos`, which takes half an hour. Prints a table and writes runs/bench/chaos.json.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import yaml
from fragile import fragile_work
from scale import ray_of
from support import ROOT, after, all_gone, manifest, rated_once, run, stop, wait_until
from workload import publish
from works import RULES, write_trios

from jobs.flow import run_groups
from ramo_ray.models.resolve import resolve

MODEL = "bundled:smollm2-135m-instruct"
TRIOS, LATENCY_S, BATCH = 500, 1.2, 4
SLOWER = 3.0
"""Times `LATENCY_S` for a batch of the run whose driver is killed, so that it does not end before the last kill."""
PARTS = ("poison", "kills")
LONGEST = 2.0
"""Until a driver is killed, at most, in times of what passes before a first commit: half are killed at work."""


def kills(moments: int, trios: int, seed: int) -> dict[str, float]:
    """Kill a run's driver so many times, then let it end: what became of its conversations."""
    random = Random(seed)
    with tempfile.TemporaryDirectory(prefix="ramo-chaos-") as name:
        folder = Path(name)
        (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": RULES}))
        write_trios(folder, trios)
        words = ["judge.engine=scripted", f"judge.scripted.latency_s={SLOWER * LATENCY_S}", f"judge.batch_size={BATCH}"]
        words += [f"trios={folder / 'trios.jsonl'}", f"rules={folder / 'rules.yaml'}", f"output={folder / 'run'}"]
        words += ["ray.num_cpus=2", "ray.object_store_gib=0.3", "judge.actors.num_cpus=0.5"]
        words += ["rated=[adapter_train, adapter_test, reward_train, reward_test]"]
        command = [sys.executable, "-m", "jobs.rate", str(ROOT / "jobs/configs/laptop"), *words]
        ratings = folder / "run/data/ratings"

        def kill(when: Callable[[], bool]) -> bool:
            """Whether it still ran."""
            status, told, had = stop(command, when, signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), told
            wait_until(lambda: all_gone(had), 60)
            return status != 0

        def parts() -> int:
            return len(list(ratings.glob("part-*")))

        began = time.monotonic()
        killed = int(kill(lambda: parts() > 0))
        first = time.monotonic() - began
        at_work = 0
        for _ in range(moments - 1):
            before = parts()
            ran = kill(after(random.uniform(0.5, LONGEST * first)))
            killed += ran
            at_work += ran and parts() > before
        kept = parts()
        assert killed == moments, f"the run ended after {killed} kills: give more --trios"
        done = run(command)
        assert done.returncode == 0, done.stderr
        rated, counts = rated_once(folder / "run/data"), manifest(folder / "run")["counts"]
        assert len(rated) == 2 * trios == counts["conversations"]
        assert not any(row["error"] for row in rated)
        return {
            "kills": killed,
            "of_them_after_a_commit": at_work + 1,
            "conversations_rated_once": len(rated),
            "parts_before_the_last_run": kept,
            "parts": parts(),
        }


def poison(trios: int) -> dict[str, float]:
    """Seconds of a run with a row that kills its actor, against one without."""
    seconds: dict[str, float] = {}
    for name, poisoned in (("undisturbed", ()), ("with_poison", (trios // 3,))):
        with tempfile.TemporaryDirectory(prefix="ramo-chaos-") as folder, ray_of(2):
            work = fragile_work(
                Path(folder), str(resolve(MODEL)), trios, poisoned=poisoned, block=BATCH, latency_s=LATENCY_S
            )
            started = time.perf_counter()
            result = run_groups(work)
            seconds[f"seconds_{name}"] = time.perf_counter() - started
            assert result.counts["out"] == trios - len(poisoned)
            assert len(result.lost) == len(poisoned)
    return seconds | {"poison_ratio": seconds["seconds_with_poison"] / seconds["seconds_undisturbed"]}


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    arguments.add_argument("--moments", type=int, default=20)
    arguments.add_argument("--trios", type=int, default=TRIOS)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    chosen = arguments.parse_args()
    measures: dict[str, float] = {"seed": chosen.seed}
    if "poison" in chosen.parts:
        measures |= poison(chosen.trios)
    if "kills" in chosen.parts:
        measures |= kills(chosen.moments, chosen.trios, chosen.seed)
    publish("chaos", measures, chosen.output)


if __name__ == "__main__":
    main()
