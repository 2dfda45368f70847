"""From a source to a run's tables, through the stages that a job puts between: what rate and label share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.display import progress
from ramo_ray.pipelines.actors import Meter
from ramo_ray.pipelines.sources import Member, Source, keep_pending, prompt_groups
from ramo_ray.pipelines.store import Convert, PartStore, write_groups

if TYPE_CHECKING:
    from ray.data import Dataset


POLL_TIMEOUT = 10
PARTITION, MAX_PARTITIONS = 2_000, 64
"""Members that one task brings together by prompt, and the most such tasks."""


class Work(NamedTuple):
    """What is to be done, and what of it is done already.

    Attributes:
        title: what the progress bar says.
        source: where the rows come from; `cuts` and `wanted` say of which splits.
        block: prompt groups that travel, and are committed, together.
        done: ids of the members (`member`) that need nothing more.
        total: members in all.
    """

    title: str
    source: Source
    cuts: Sequence[float]
    wanted: Sequence[str]
    block: int
    member: Member
    done: Iterable[str]
    total: int


def run_groups(work: Work, store: PartStore, through: Callable[[Dataset, Any], Dataset], convert: Convert) -> None:
    """Send what is pending through the stages and commit it; starts nothing where nothing is pending."""
    done = frozenset(work.done)
    if len(done) >= work.total:
        return
    import ray

    meter = ray.remote(num_cpus=0)(Meter).remote()
    groups = prompt_groups(
        work.source, work.cuts, work.wanted, work.block, partitions=min(MAX_PARTITIONS, 1 + work.total // PARTITION)
    )
    pending = keep_pending(groups, done, work.member)

    def poll() -> tuple[float, str]:
        try:
            sums = ray.get(meter.totals.remote(), timeout=POLL_TIMEOUT)
        except ray.exceptions.RayError:
            # The display is not worth a run: whatever ails Ray is raised where the work is done.
            return len(done), ""
        calls, seconds = sums.get("calls", 0), sums.get("seconds", 0)
        written = sums.get("groups" if work.member == "prompts" else "rows", 0)
        return len(done) + written, f"{calls:.0f} calls, {calls / seconds:.1f}/s an actor" if seconds else ""

    with progress(work.title, work.total, poll):
        write_groups(through(pending, meter), store, convert, meter)
