"""A cluster's size, rehearsed: actors that answer after a fixed time, on as many logical CPUs as it takes.

Run by `make bench-scale`. Three questions: how many times one actor's rate 8, 32 and 64 actors reach; what share of the
bare engine's rate one actor behind the whole pipeline has; how much the driver's memory grows over 10^6 conversations.
Prints a table, and writes runs/bench/scale.json.

The actors are the pipeline's, with the scripted engine, in a process each. On two cores they come up one after
another, so the clock runs from when all have done some batches until the first has ended. Batches take a tenth more or
less than said, as machines are not in step either: where all take the same time to the millisecond, actors that share
two cores wait for each other at the same moment, and then all sleep. So that 64 fit into 24 GiB, they load their
tokenizer without torch and the model code that come along elsewhere (400 MB a process), which gives the same prompts:
that is checked first. And so that two cores do what 64 machines would, a batch is one prompt group. What CPUs do for a
batch, in all processes, is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from workload import ROOT, publish
from works import RULES, rating_work, scripted, write_trios

from jobs.flow import Work, run_groups
from jobs.session import set_up_ray_data
from ramo_ray.core.rules import make_pool
from ramo_ray.engines import build_engine
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines import rating
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.settings import JudgeSettings

MODEL = "bundled:smollm2-135m-instruct"
SIZES = (1, 8, 32, 64)
BATCH, SECONDS_A_BATCH, BATCHES_AN_ACTOR = 1, 2.0, 60
SPREAD = 0.1
"""What a batch may take more or less than `SECONDS_A_BATCH`, as a share of it."""
WARM_UP = 20
"""Batches that each actor does before the clock starts: until then, Ray starts the processes that read and write."""
PART = 16
"""Groups that are committed together."""
MILLION = 1_000_000
PARTS = ("pipeline", "sizes", "million")


class Simulated(NamedTuple):
    """Batches a second while all actors were at work, and what all processes' CPUs did for one."""

    rate: float
    cpu_seconds: float


class Large(NamedTuple):
    """Conversations a second, and the driver's growth in MB."""

    rate: float
    growth_mb: float


class LightJudge(RuleJudge):
    """The pipeline's judge, in a small process; it notes when it began, and each batch's end."""

    def __init__(self, settings: dict[str, Any], notes: str, overseer: Any) -> None:
        rating.load_tokenizer = light_tokenizer
        super().__init__(settings, RULES, "all_rules", overseer)
        self.notes = (Path(notes) / str(os.getpid())).open("w")
        self.batches = 0
        self.latency_s = self.engine.latency_s

    def __call__(self, batch: Any) -> Any:
        if not self.batches:
            self._note()
        self.engine.latency_s = self.latency_s * random.uniform(1 - SPREAD, 1 + SPREAD)
        rated = super().__call__(batch)
        self.batches += 1
        self._note()
        return rated

    def _note(self) -> None:
        print(time.time(), file=self.notes, flush=True)


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
    return scripted(MODEL, batch=batch, latency_s=latency_s, actors={"min": actors, "max": actors, "num_cpus": 1})


def work(folder: Path, settings: JudgeSettings, part: int) -> Work:
    (folder / "notes").mkdir()
    return rating_work(folder, settings, LightJudge, {"notes": str(folder / "notes")}, part=part)


class Noted:
    """What a run's actors noted: when each began, and when its batches ended."""

    def __init__(self, folder: Path) -> None:
        self.actors = [[float(line) for line in file.read_text().split()] for file in (folder / "notes").iterdir()]
        self.first = max(times[WARM_UP] for times in self.actors)
        self.last = min(times[-1] for times in self.actors)

    def batches_a_second(self) -> float:
        """While all actors were at work; of a batch that was under way before or after, the part within counts."""
        within = [
            max(0.0, min(end, self.last) - max(begin, self.first)) / (end - begin)
            for times in self.actors
            for begin, end in itertools.pairwise(times)
        ]
        return sum(within) / (self.last - self.first)


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
    set_up_ray_data()
    ray.data.DataContext.get_current().wait_for_min_actors_s = 900
    try:
        yield
    finally:
        ray.shutdown()


def simulated(actors: int) -> Simulated:
    """A run by so many actors, each of which takes `SECONDS_A_BATCH` for a batch."""
    with scratch() as folder:
        write_trios(folder, actors * BATCH * BATCHES_AN_ACTOR)
        with ray_of(actors + 4), watched(_cpu_seconds) as spent:
            run_groups(work(folder, judge(actors, SECONDS_A_BATCH, BATCH), PART))
        noted = Noted(folder)
    rate = noted.batches_a_second()
    (since, before), *_, (until, after) = [(at, used) for at, used in spent if noted.first <= at <= noted.last]
    return Simulated(rate, (after - before) / (until - since) / rate)


def _cpu_seconds() -> float:
    used = psutil.cpu_times()
    # Ray's workers are niced.
    return float(used.user + used.nice + used.system)


@contextlib.contextmanager
def watched(what: Callable[[], float]) -> Iterator[list[tuple[float, float]]]:
    """A value, twice a second, with its time."""
    seen, stop = list[tuple[float, float]](), threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            seen.append((time.time(), what()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def behind_the_pipeline() -> float:
    """Share of the bare engine's rate that one actor has behind the pipeline."""
    settings = judge(1, SECONDS_A_BATCH, BATCH)
    prompts = JudgePrompts(load_tokenizer(resolve(MODEL)), settings, make_pool("judge", RULES, origin="here"))
    with scratch() as folder:
        write_trios(folder, BATCH * BATCHES_AN_ACTOR)
        with ray_of(4):
            run_groups(work(folder, settings, BATCH))
        piped = Noted(folder).batches_a_second()
    asked = [prompts.ids([{"role": "user", "content": "What is 7?"}], "A number, 7.", range(len(RULES)))] * 2 * BATCH
    engine = build_engine(settings, resolve(MODEL))
    started = time.perf_counter()
    for _ in range(10):
        engine.label_logprobs([ids for own in asked for ids in own], prompts.labels)
    return piped / (10 / (time.perf_counter() - started))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ramo-scale-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def million(prompts: int) -> Large:
    """A run over 2 · `prompts` conversations by actors that take no time: what the driver's memory grows by."""
    with scratch() as folder:
        write_trios(folder, prompts)
        with ray_of(4), watched(_memory) as seen:
            before, started = _memory(), time.perf_counter()
            run_groups(work(folder, judge(2, 0.0, 256), 1024))
            seconds = time.perf_counter() - started
    return Large(2 * prompts / seconds, (max(most for _, most in seen) - before) / 1e6)


def _memory() -> float:
    return float(psutil.Process().memory_info().rss)


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
        one = None
        for size in chosen.sizes:
            own = simulated(size)
            one = one or own.rate / size
            measures |= {
                f"batches_per_second_{size}": own.rate,
                f"of_{size}_times_one": own.rate / (size * one),
                f"cpu_seconds_a_batch_{size}": own.cpu_seconds,
            }
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
