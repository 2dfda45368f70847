"""Trios to ratings: a judge rates every conversation of the adapter's splits on every rule of the pool."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from jobs.display import heading, server_lines, summary, truncated_line
from jobs.inputs import CheckedJudge, TrioStageConfig, check_judge, open_source, rule_pool
from jobs.session import ray_session
from jobs.stage import Stage, open_stage
from ramo_ray.config import run
from ramo_ray.settings import JudgeSettings, Split

if TYPE_CHECKING:
    from collections import Counter

TABLES = ("ratings",)


class RateConfig(TrioStageConfig):
    job: ClassVar[str] = "rate"
    growing: ClassVar[tuple[str, ...]] = ("rules",)
    rated: Annotated[tuple[Split, ...], Field(min_length=1)] = ("adapter_train", "adapter_test")
    """Splits that are rated on all rules."""
    generation: PositiveInt = 1
    """Which set of results this is. A higher number begins anew beside those of another judge, layout or template."""
    judge: JudgeSettings = JudgeSettings()


def check(config: RateConfig) -> CheckedJudge:
    """Refuse, before anything starts, a pool, a judge or a source that cannot be used."""
    pool = rule_pool(config, 1)
    if config.trios:
        open_source(config)
    return check_judge(config.judge, pool)


def main(config: RateConfig) -> list[str]:
    """Rate each conversation of some splits on all rules of the pool, once however many trios it is in."""
    with open_stage(config) as stage:
        if _has_more(config, stage):
            stage.reopen()
        if not stage.finished:
            _rate(config, stage)
        counts, judge = stage.manifest["counts"], stage.manifest["judge"]
        summary(
            f"ratings in {stage.data / 'ratings'}",
            {
                "conversations": counts["conversations"],
                "judge calls": judge["calls"],
                "calls a second and actor": judge["calls"] / judge["seconds"] if judge["seconds"] else 0.0,
                "quarantined trios": counts["quarantined"],
                **truncated_line(counts),
                **server_lines(judge),
            },
        )
    return [stage.next_job("train_adapter", ratings=stage.data / "ratings", trios=config.trios)]


def _has_more(config: RateConfig, stage: Stage) -> bool:
    """Whether a finished run's pool has changed since, or rows that it gave up may be tried more often now."""
    grown = stage.manifest.get("rules") != rule_pool(config, 1).fingerprint
    return grown or stage.gave_up_too_early(config.judge.max_tries)


def _rate(config: RateConfig, stage: Stage) -> None:
    from jobs.flow import Work, run_groups
    from ramo_ray.pipelines import rating
    from ramo_ray.pipelines.progress import Goal
    from ramo_ray.pipelines.store import PartStore

    heading("Ratings on all rules")
    pool = rule_pool(config, 1)
    judge = check(config)
    store = PartStore(str(stage.data), TABLES)
    stage.claim(store, judge.origin)
    work = Work(
        title=rating.TITLES["all_rules"],
        source=open_source(config),
        shares=config.splits,
        wanted=config.rated,
        store=store,
        goal=Goal("conversations", "ratings", config.judge.max_tries, tuple(pool.ids)),
        block=config.judge.batch_size,
        part=config.storage.part_groups or config.judge.batch_size,
        actors=config.judge.actors,
        tell=stage.tell,
        spent=stage.spent,
        through=lambda groups, overseer: rating.rate(groups, judge.settings, pool.texts, "all_rules", overseer),
        convert=partial(rating.rated_rows, fingerprint=judge.fingerprint),
    )
    with ray_session(config.ray):
        result = run_groups(work)
    grouped = result.grouped
    counts = stage.counts(
        rows_in=grouped.rows, rows_out=result.counts["out"], other_split=grouped.others(config.rated), bad=result.bad()
    )
    counts |= {
        "trios": grouped.count(config.rated),
        "conversations": result.counts["complete"],
        "conversations_expected": result.counts["members"],
        "truncated": result.counts["truncated"],
        "given_up": result.counts["lost"],
    }
    stage.finish(
        counts=counts,
        judge=judge_totals(store.totals()) | {"cells": result.counts["cells"], "exact_seam": judge.exact_seam},
        fingerprint=judge.fingerprint,
        rules=pool.fingerprint,
        max_tries=config.judge.max_tries,
    )


def judge_totals(totals: Counter[str]) -> dict[str, float]:
    """Of a store's totals, calls, tokens and seconds of the judge; and what its server counted, if any."""
    from ramo_ray.pipelines.store import served

    own: dict[str, float] = {name: int(totals[name]) for name in ("calls", "tokens", "computed")}
    own["seconds"] = round(totals["seconds"], 2)
    return own | served(totals)


if __name__ == "__main__":
    run(main)
