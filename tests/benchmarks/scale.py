"""A cluster's size, rehearsed: actors that answer after a fixed time, on as many logical CPUs as it takes.

Run by `make bench-scale`. Three questions: how many times one actor's rate 8, 32 and 64 actors reach; what share of the
bare engine's rate one actor behind the whole pipeline has; how much the driver's memory grows over 10^6 conversations.
Prints a table, and writes runs/bench/scale.json.

The actors are the pipeline's, with the scripted engine, in a process each. On two cores they come up one after another,
so the clock starts when all are there; so that 64 fit into 24 GiB, they load their tokenizer without torch and the
model code that come along elsewhere (400 MB a process), which gives the same prompts: that is checked first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from workload import ROOT, publish

from jobs.flow import Work, run_groups
from ramo_ray.core.rules import make_pool
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines import rating
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.progress import Goal
from ramo_ray.pipelines.prompts import JudgePrompts
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.pipelines.sources import open_trios
from ramo_ray.pipelines.store import PartStore
from ramo_ray.pipelines.tables import table
from ramo_ray.settings import JudgeSettings, SourceSettings

RULES = ["Accept the response that is polite.", "Accept the response that is short."]
SIZES = (1, 8, 32, 64)
BATCH, SECONDS_A_BATCH, BATCHES_AN_ACTOR = 4, 2.0, 20
MILLION = 1_000_000
PARTS = ("pipeline", "sizes", "million")


class Measured(NamedTuple):
    """Conversations a second while all actors were at work, and the driver's growth in MB."""

    rate: float
    growth_mb: float
    seconds: float


class LightJudge(RuleJudge):
    """The pipeline's judge, in a small process."""

    def __init__(self, settings: dict[str, Any], overseer: Any) -> None:
        rating.load_tokenizer = light_tokenizer
        super().__init__(settings, RULES, "all_rules", overseer)


def light_tokenizer(folder: Path) -> Any:
    # What is None here counts as not installed.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def require_same_prompts(settings: JudgeSettings) -> None:
    """Refuse a tokenizer whose prompts are not those of the pipeline's."""
    folder, pool = resolve(settings.model), make_pool("judge", RULES, origin="here")
    asked = [{"role": "user", "content": "What is 7?"}], "A number, 7.", range(len(RULES))
    own, light = (JudgePrompts(load(folder), settings, pool).ids(*asked) for load in (load_tokenizer, light_tokenizer))
    assert own == light


def judge(actors: int, latency_s: float, batch: int) -> JudgeSettings:
    return JudgeSettings.model_validate(
        {
            "engine": "scripted",
            "layout": "rule_last",
            "batch_size": batch,
            "scripted": {"latency_s": latency_s},
            "actors": {"min": actors, "max": actors, "num_cpus": 1},
        }
    )


def write_trios(file: Path, prompts: int) -> None:
    with file.open("w") as stream:
        for n in range(prompts):
            row = {"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "I do not know."}
            stream.write(json.dumps(row) + "\n")


def work(folder: Path, settings: JudgeSettings, part: int) -> Work:
    pool = make_pool("judge", RULES, origin="here")

    def through(groups: Any, overseer: Any) -> Any:
        return groups.map_batches(
            LightJudge,
            fn_constructor_kwargs={"settings": settings.model_dump(mode="json"), "overseer": overseer},
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
        block=settings.batch_size,
        part=part,
        through=through,
        convert=partial(rating.rated_rows, fingerprint="f"),
        actors=settings.actors,
    )


def times_of_batches(folder: Path) -> list[float]:
    """When each part was committed."""
    return sorted(file.stat().st_mtime for file in (folder / "data" / "ratings").glob("part-*.parquet"))


def steady_rate(commits: list[float], batches_at_once: int) -> float:
    """Batches a second between the end of the first round of all actors and the start of the last."""
    inner = commits[batches_at_once : len(commits) - batches_at_once]
    return (len(inner) - 1) / (inner[-1] - inner[0])


@contextlib.contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2**30,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 900
    try:
        yield
    finally:
        ray.shutdown()


def simulated(actors: int) -> float:
    """Batches a second of so many actors, each of which takes `SECONDS_A_BATCH` for one."""
    with scratch() as folder:
        write_trios(folder / "trios.jsonl", actors * BATCH * BATCHES_AN_ACTOR)
        with ray_of(actors + 4):
            run_groups(work(folder, judge(actors, SECONDS_A_BATCH, BATCH), BATCH))
        return steady_rate(times_of_batches(folder), actors)


def behind_the_pipeline() -> float:
    """Share of the bare engine's rate that one actor has behind the pipeline."""
    settings = judge(1, 0.5, BATCH)
    prompts = 60 * BATCH
    bare = RuleJudge(settings.model_dump(mode="json"), RULES, "all_rules")
    with scratch() as folder:
        write_trios(folder / "trios.jsonl", prompts)
        with ray_of(4):
            given = work(folder, settings, BATCH)
            run_groups(given)
        piped = steady_rate(times_of_batches(folder), 2)
        groups = [group for shard in range(1) for group in shards(given)[shard][: 20 * BATCH]]
        batches = [table("groups", groups[i : i + BATCH]) for i in range(0, len(groups), BATCH)]
        started = time.perf_counter()
        for batch in batches:
            bare(batch)
        return piped / (len(batches) / (time.perf_counter() - started))


def shards(given: Work) -> list[list[dict[str, Any]]]:
    from ramo_ray.pipelines.shards import read_grouped

    grouped = read_grouped(given.store.root)
    assert grouped is not None
    return [grouped.groups(shard) for shard in range(len(grouped.shards))]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ramo-scale-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def million(prompts: int) -> Measured:
    """A run over 2 · `prompts` conversations by actors that take no time: what the driver's memory grows by."""
    with scratch() as folder:
        write_trios(folder / "trios.jsonl", prompts)
        with ray_of(4):
            stop, most = threading.Event(), [0.0]
            watcher = threading.Thread(target=_watch, args=(stop, most), daemon=True)
            before = psutil.Process().memory_info().rss
            watcher.start()
            started = time.perf_counter()
            run_groups(work(folder, judge(2, 0.0, 256), 1024))
            seconds = time.perf_counter() - started
            stop.set()
            watcher.join()
    return Measured(2 * prompts / seconds, (most[0] - before) / 1e6, seconds)


def _watch(stop: threading.Event, most: list[float]) -> None:
    own = psutil.Process()
    while not stop.wait(0.5):
        most[0] = max(most[0], own.memory_info().rss)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments.add_argument("--conversations", type=int, default=MILLION)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    chosen = arguments.parse_args()
    require_same_prompts(judge(1, 0.0, BATCH))
    measures: dict[str, float] = {}
    if "pipeline" in chosen.parts:
        measures["one_actor_of_bare_engine"] = behind_the_pipeline()
    if "sizes" in chosen.parts:
        rates = {size: simulated(size) for size in chosen.sizes}
        for size, rate in rates.items():
            measures[f"batches_per_second_{size}"] = rate
            measures[f"of_ideal_{size}"] = rate / (size * rates[chosen.sizes[0]] / chosen.sizes[0])
    if "million" in chosen.parts:
        large = million(chosen.conversations // 2)
        measures |= {
            "conversations": chosen.conversations,
            "conversations_per_second": large.rate,
            "driver_growth_mb": large.growth_mb,
        }
    publish("scale", measures, chosen.output)


if __name__ == "__main__":
    main()
