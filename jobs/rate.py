"""Trios to ratings: a judge rates every conversation of the adapter's splits on every rule of the pool."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from jobs.display import heading, server_lines, summary, truncated_line
from jobs.inputs import CheckedJudge, TrioStageConfig, check_judge, open_source, rule_pool
from jobs.session import ray_session
from jobs.stage import Stage, open_stage
from ramo_ray.config import run
from ramo_ray.settings import JudgeSettings, Split

if TYPE_CHECKING:
    from ramo_ray.pipelines.store import PartStore

TABLES = ("failures", "ratings")


class RateConfig(TrioStageConfig):
    job: ClassVar[str] = "rate"
    rated: Annotated[tuple[Split, ...], Field(min_length=1)] = ("adapter_train", "adapter_test")
    """Splits that are rated on all rules."""
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


def _rate(config: RateConfig, stage: Stage) -> None:
    from jobs.flow import Work, run_groups
    from ramo_ray.pipelines import rating, sources
    from ramo_ray.pipelines.store import PartStore

    heading("Ratings on all rules")
    pool = rule_pool(config, 1)
    judge = check(config)
    source = open_source(config)
    survey = sources.survey(source, config.splits)
    store = PartStore(str(stage.data), TABLES).open()
    expected = sum(survey.conversations[split] for split in config.rated)
    work = Work(
        title="rating",
        source=source,
        cuts=survey.cuts,
        wanted=config.rated,
        block=config.judge.batch_size,
        member="conversations",
        done=rated_conversations(store),
        total=expected,
    )
    convert = partial(rating.rated_rows, fingerprint=judge.fingerprint)
    with ray_session(config.ray):
        run_groups(
            work, store, lambda g, meter: rating.rate(g, judge.settings, pool.texts, "all_rules", meter), convert
        )
    done = rated_conversations(store)
    # A trio's failure counts while the conversation that it names stays unrated; a later try may have mended it.
    failed = {row["id"]: row for row in store.read("failures").to_pylist() if row["origin"] not in done}
    trios = survey.count(config.rated)
    counts = stage.counts(
        rows_in=survey.rows,
        rows_out=trios - len(failed),
        other_split=survey.count([s for s in survey.trios if s not in config.rated]),
        bad=[*survey.bad, *failed.values()],
    )
    counts |= {"trios": trios, "conversations": len(done), "conversations_expected": expected}
    counts["truncated"] = len(truncated_conversations(store))
    stage.finish(
        counts=counts,
        judge=judge_totals(store.totals()) | {"cells": len(done) * len(pool), "exact_seam": judge.exact_seam},
        fingerprint=judge.fingerprint,
        rules=pool.fingerprint,
    )


def rated_conversations(store: PartStore) -> set[str]:
    """Ids of the conversations that have ratings."""
    rows = store.read("ratings", ["conversation_id", "error"])
    return set(rows.filter(rows["error"].is_null())["conversation_id"].to_pylist())


def truncated_conversations(store: PartStore) -> set[str]:
    """Ids of the conversations whose response was cut for the judge, and which have ratings."""
    rows = store.read("ratings", ["conversation_id", "truncated", "error"])
    rated = rows.filter(rows["error"].is_null())
    return set(rated.filter(rated["truncated"])["conversation_id"].to_pylist())


def judge_totals(totals: Counter[str]) -> dict[str, float]:
    """Of a store's totals, calls, tokens and seconds of the judge; and what its server counted, if any."""
    from ramo_ray.pipelines.store import served

    own: dict[str, float] = {name: int(totals[name]) for name in ("calls", "tokens")}
    own["seconds"] = round(totals["seconds"], 2)
    return own | served(totals)


if __name__ == "__main__":
    run(main)
