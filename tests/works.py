"""The work of rating a few small trios as `jobs.rate` does it, around a judge of a test's or benchmark's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs.flow import Work
from ramo_ray.core.rules import make_pool
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.progress import Goal
from ramo_ray.pipelines.rating import TITLES, RuleJudge, rated_rows
from ramo_ray.pipelines.sources import open_trios
from ramo_ray.pipelines.store import PartStore
from ramo_ray.settings import JudgeSettings, SourceSettings

RULES = ["Accept the response that is polite.", "Accept the response that is short."]


def write_trios(folder: Path, count: int, rejected: Callable[[int], str] = lambda _: "No idea.") -> None:
    """Write trios.jsonl: so many prompts, with one trio each."""
    with (folder / "trios.jsonl").open("w") as stream:
        for n in range(count):
            row = {"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": rejected(n)}
            stream.write(json.dumps(row) + "\n")


def rating_work(
    folder: Path,
    settings: JudgeSettings,
    judge: type[RuleJudge],
    given: dict[str, Any],
    *,
    part: int,
    root: str = "",
    before: Callable[[Any], Any] | None = None,
) -> Work:
    """Rate a folder's trios.jsonl.

    Args:
        folder: has the trios; the tables go there too if no `root` is named.
        settings: the judge's, which also size its pool; blocks are its batches.
        judge: takes `settings`, as a mapping, what is `given`, and `overseer`; asks `RULES`.
        given: more arguments of the judge.
        part: prompt groups that are committed together.
        root: of the tables.
        before: a stage between the pending groups and the judge.
    """

    def through(groups: Any, overseer: Any) -> Any:
        return (before(groups) if before else groups).map_batches(
            judge,
            fn_constructor_kwargs={"settings": settings.model_dump(mode="json"), **given, "overseer": overseer},
            batch_format="pyarrow",
            batch_size=settings.batch_size,
            **pool_options(settings.actors, overseer),
        )

    return Work(
        title=TITLES["all_rules"],
        source=open_trios(str(folder / "trios.jsonl"), SourceSettings(), None),
        shares=None,
        wanted=[""],
        store=PartStore(root or str(folder / "data"), ("ratings",)),
        goal=Goal("conversations", "ratings", settings.max_tries, tuple(make_pool("judge", RULES, origin="here").ids)),
        block=settings.batch_size,
        part=part,
        through=through,
        convert=partial(rated_rows, fingerprint="f"),
        actors=settings.actors,
    )


def scripted(model: str, *, batch: int, latency_s: float, actors: dict[str, Any]) -> JudgeSettings:
    """A judge that answers after a fixed time."""
    return JudgeSettings.model_validate(
        {
            "engine": "scripted",
            "model": model,
            "layout": "rule_last",
            "batch_size": batch,
            "scripted": {"latency_s": latency_s},
            "actors": actors,
        }
    )
