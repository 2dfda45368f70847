"""From a source to a run's tables, through the stages that a job puts between: what all jobs over groups share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.display import progress
from jobs.observer import Observer, asked_to_stop
from jobs.pace import Moment, Pace
from jobs.scaling import Demand
from ramo_ray.errors import StoppedError
from ramo_ray.pipelines.actors import SMALL, in_blocks
from ramo_ray.pipelines.grouping import group_source
from ramo_ray.pipelines.overseer import Overseer
from ramo_ray.pipelines.progress import Account, Goal, account, pending
from ramo_ray.pipelines.shards import Grouped
from ramo_ray.pipelines.sources import Source
from ramo_ray.pipelines.store import Convert, PartStore, write_groups
from ramo_ray.pipelines.tables import packed
from ramo_ray.pipelines.telemetry import RunGauges
from ramo_ray.settings import ActorSettings, SplitSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

READERS = 4
"""Tasks that read shards at a time, each in a process of its own; Ray Data leaves to the pools what is not theirs at
most."""
ACCOUNTED = 64
"""Shards that are accounted for at a time."""


class Work(NamedTuple):
    """What is to be done, and through what.

    Attributes:
        title: what the progress bar says.
        source: where the rows come from; `shares` and `wanted` say of which splits.
        store: the run's tables.
        goal: what makes a member of a group done.
        block: prompt groups that travel together.
        part: prompt groups that are committed together.
        through: the stages, from pending groups and the overseer to finished groups.
        convert: from a finished group to rows of the tables.
        actors: the pool that sets the pace: its size, and its price.
        tell: called now and then with how far the run is.
        spent: what the run has cost before, in other processes.
    """

    title: str
    source: Source
    shares: SplitSettings | None
    wanted: Sequence[str]
    store: PartStore
    goal: Goal
    block: int
    part: int
    through: Callable[[Dataset, Any], Dataset]
    convert: Convert
    actors: ActorSettings
    tell: Callable[[Moment], None] | None = None
    spent: float = 0.0


class Result(NamedTuple):
    """What came of it: the source's counts, sums over its members, and the rows that were given up."""

    grouped: Grouped
    counts: Counter[str]
    lost: list[dict[str, Any]]

    def bad(self) -> Iterator[dict[str, Any]]:
        """Rows for the quarantine: those that could not be used, then those that were given up."""
        yield from self.grouped.bad_rows()
        yield from self.lost


def run_groups(work: Work) -> Result:
    """Send what is pending through the stages and commit it, until nothing is left to do or to try again.

    Raises:
        StoppedError: the process was asked to end (SIGTERM), and what was under way is committed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    grouped = group_source(work.source, work.shares, work.wanted, work.store.root)
    counts, lost = _account(work, grouped)
    # Where the driver is: any other node may go while the run lives on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    overseer = ray.remote(num_cpus=0, scheduling_strategy=here)(Overseer).remote()
    with asked_to_stop() as stop:
        while counts["pending"] and not stop.is_set():
            released = ray.get(overseer.release.remote())
            try:
                _round(work, grouped, counts, overseer, stop)
            except ray.exceptions.RayError:
                # Where actors were given up, as no machine is left for them, others go on with their batches.
                if ray.get(overseer.release.remote()) == released:
                    raise
            counts, lost = _account(work, grouped)
    if counts["pending"]:
        raise StoppedError(
            f"stopped as asked, with {counts['pending']:,} of {counts['members']:,} left: what was under way is done "
            "and kept; run the same command again to continue."
        )
    return Result(grouped, counts, lost)


def _round(work: Work, grouped: Grouped, counts: Counter[str], overseer: Any, stop: threading.Event) -> None:
    """Go once through all that is pending."""
    import ray

    ray.get(overseer.begin_round.remote())
    store, written = work.store.open(), "groups" if work.goal.member == "prompts" else "rows"
    done = counts["members"] - counts["pending"]
    observer = Observer(
        overseer,
        pace=Pace(counts["members"], done, work.actors.price_per_hour, work.spent),
        demand=Demand(work.actors),
        gauges=RunGauges(work.title),
        written=written,
        before=ray.get(overseer.totals.remote()).get(written, 0),
        tell=work.tell,
        stop=stop,
    )
    with progress(work.title, counts["members"], observer.line), observer:
        groups = work.through(_pending_groups(work, grouped, store, overseer), overseer)
        write_groups(groups, store, work.convert, overseer, work.part)


def _pending_groups(work: Work, grouped: Grouped, store: PartStore, overseer: Any) -> Dataset:
    """Dataset of `groups` that have something left to do, in blocks of `work.block`; one task reads a shard."""
    import ray

    parts = store.by_shard()
    items = [{"shard": shard, "parts": parts.get(shard, [])} for shard in range(len(grouped.shards))]

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            if ray.get(overseer.is_stopping.remote()):
                yield packed("groups", [])
                continue
            yield packed("groups", pending(grouped.groups(row["shard"]), store, row["parts"], work.goal))

    groups = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read, batch_size=1, batch_format="pyarrow", compute=ray.data.TaskPoolStrategy(size=READERS), **SMALL
    )
    return in_blocks(groups, work.block, READERS)


def _account(work: Work, grouped: Grouped) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Sums over all shards, and the rows that are given up."""
    import ray

    parts = work.store.by_shard()
    if not parts:
        members = grouped.members(work.goal.member, work.wanted)
        return Counter(members=members, pending=members), []

    @ray.remote(**SMALL)  # type: ignore[untyped-decorator]
    def of_shard(shard: int, parts: list[str]) -> Account:
        return account(grouped.outlines(shard), work.store, parts, work.goal)

    counts: Counter[str] = Counter()
    lost: list[dict[str, Any]] = []
    for first in range(0, len(grouped.shards), ACCOUNTED):
        shards = range(first, min(first + ACCOUNTED, len(grouped.shards)))
        for own in ray.get([of_shard.remote(shard, parts.get(shard, [])) for shard in shards]):
            counts.update(own._asdict() | {"lost": len(own.lost)})
            lost += own.lost
    return counts, lost
