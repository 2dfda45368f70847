"""A judge's layouts and scoring methods on the same conversations: what each costs, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt, field_validator

from jobs.display import heading
from jobs.inputs import SourceStageConfig, check_judge, open_source, rule_pool
from jobs.session import ray_session
from jobs.stage import Stage, open_stage
from ramo_ray.config import Config, run
from ramo_ray.core.prompts import Layout
from ramo_ray.errors import SourceError
from ramo_ray.settings import EmbedderSettings, JudgeSettings, Method, SelectionSettings

if TYPE_CHECKING:
    from jobs.flow import Result
    from ramo_ray.pipelines.comparing import JudgedWay
    from ramo_ray.pipelines.sources import Source
    from ramo_ray.pipelines.store import PartStore

TABLES = ("failures", "ratings", "costs", "compared")


class Way(Config):
    layout: Layout
    """Where the rule stands in the judge's prompt."""
    method: Method = "three_labels"
    """How a score is read off the judge."""

    @property
    def name(self) -> str:
        """The way in one word."""
        return f"{self.layout}/{self.method}"


METHODS: tuple[Method, ...] = ("three_labels", "two_labels", "number")
LAYOUTS: tuple[Layout, ...] = ("paper", "rule_last")
EVERY_WAY = tuple(Way(layout=layout, method=method) for method in METHODS for layout in LAYOUTS)


class CompareLayoutsConfig(SourceStageConfig):
    job: ClassVar[str] = "compare_layouts"
    limit: PositiveInt | None = 50
    """Trios that are compared: the first rows of the source."""
    ways: tuple[Way, ...] = EVERY_WAY
    """Layouts and methods, two or more; the first is the reference. They stand in for the judge's own."""
    samples: PositiveInt = 1000
    """Bootstrap resamples of the prompts."""
    judge: JudgeSettings = JudgeSettings()
    embedder: EmbedderSettings = EmbedderSettings()
    selection: SelectionSettings = SelectionSettings()

    @field_validator("ways")
    @classmethod
    def _two_different_ones(cls, ways: tuple[Way, ...]) -> tuple[Way, ...]:
        names = [way.name for way in ways]
        if len(names) < 2:
            raise ValueError("give two ways or more, such as [{layout: paper}, {layout: rule_last}].")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{repeated[0]} is there twice; leave one out.")
        return ways


def check(config: CompareLayoutsConfig) -> list[JudgedWay]:
    """Refuse, before anything starts, a pool, a rule budget, a judge or a source that cannot be used."""
    from ramo_ray.pipelines.comparing import JudgedWay

    pool = rule_pool(config, config.selection.r)
    if config.trios:
        _source(config)
    judges = [check_judge(config.judge.model_copy(update=way.model_dump()), pool) for way in config.ways]
    return [
        JudgedWay(way.name, judge.settings, judge.fingerprint) for way, judge in zip(config.ways, judges, strict=True)
    ]


def main(config: CompareLayoutsConfig) -> list[str]:
    """Rate the same conversations in several ways, and say how far these agree with the first and what each costs."""
    from jobs.comparison import PAGE, show

    with open_stage(config) as stage:
        if not stage.finished:
            _compare(config, stage)
        show(stage)
    return [f"open {stage.folder / PAGE}", "set judge.layout and judge.method to the way that you choose"]


def _source(config: CompareLayoutsConfig) -> Source:
    """The first rows of the source, of what was generated too."""
    return open_source(config)._replace(limit=config.limit)


def _compare(config: CompareLayoutsConfig, stage: Stage) -> None:
    from jobs.comparison import write_page, write_results
    from jobs.rate import judge_totals
    from ramo_ray.core.comparison import compare
    from ramo_ray.pipelines.comparing import read_ways, truncated_conversations
    from ramo_ray.pipelines.store import PartStore

    heading("Ways to rate")
    pool = rule_pool(config, config.selection.r)
    ways = check(config)
    store = PartStore(str(stage.data), TABLES)
    result = _rate(config, stage, ways, store, pool.texts)
    counts = stage.counts(rows_in=result.grouped.rows, rows_out=result.counts["out"], other_split=0, bad=result.bad())
    rated = read_ways(store, ways, pool.ids)
    counts |= {"prompts": rated.calls.shape[1], "conversations": len(rated.prompt_of)}
    counts["truncated"] = truncated_conversations(store)
    found = compare(rated, selection=config.selection, samples=config.samples, seed=config.seed)
    write_results(stage.folder, found, pool)
    fingerprints = {way.name: way.fingerprint for way in ways}
    stage.update(counts=counts, judge=judge_totals(store.totals()), fingerprints=fingerprints)
    write_page(stage)
    stage.finish(rules=pool.fingerprint)


def _rate(
    config: CompareLayoutsConfig, stage: Stage, ways: Sequence[JudgedWay], store: PartStore, rules: Sequence[str]
) -> Result:
    from jobs.flow import Work, run_groups
    from ramo_ray.pipelines.comparing import rate_ways, way_rows
    from ramo_ray.pipelines.critical import add_relevance
    from ramo_ray.pipelines.grouping import group_source
    from ramo_ray.pipelines.progress import Goal
    from ramo_ray.pipelines.rating import TITLES

    source, block = _source(config), config.judge.batch_size
    work = Work(
        title=TITLES["all_rules"],
        source=source,
        shares=None,
        wanted=[""],
        store=store,
        goal=Goal("trios", "compared"),
        block=block,
        part=config.storage.part_groups or block,
        through=lambda groups, overseer: rate_ways(
            add_relevance(groups, config.embedder, rules), ways, rules, overseer
        ),
        convert=way_rows,
        actors=config.judge.actors,
        tell=stage.tell,
        spent=stage.spent,
    )
    with ray_session(config.ray):
        grouped = group_source(source, None, [""], store.root)
        if grouped.prompts < 2:
            raise SourceError(
                f"{source.files[0]}: the {grouped.rows} rows that were read hold one prompt; intervals need two. "
                "Raise `limit`, or name another `trios`."
            )
        return run_groups(work)


if __name__ == "__main__":
    run(main)
