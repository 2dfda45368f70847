"""Prompts to responses: every generator answers every prompt; every two different answers are a trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt, model_validator

from jobs.display import heading, server_lines, summary
from jobs.inputs import SAMPLES, check_model, reached, sample_prompts, source_path
from jobs.session import ray_session
from jobs.stage import Stage, StageConfig, open_stage
from ramo_ray.config import run
from ramo_ray.settings import GeneratorSettings, SourceSettings

if TYPE_CHECKING:
    from ramo_ray.pipelines.sources import Source

TABLES = ("conversations", "failures", "trios")


class GenerateResponsesConfig(StageConfig):
    job: ClassVar[str] = "generate_responses"
    prompts: str = SAMPLES
    """A file, glob or hub id of prompts (`prompt`: text or messages), or `samples`."""
    limit: PositiveInt | None = None
    """Rows of the source that are read."""
    source: SourceSettings = SourceSettings()
    generators: Annotated[list[GeneratorSettings], Field(min_length=2)]
    """What writes; at least two, so that there are pairs."""

    @model_validator(mode="after")
    def _names_differ(self) -> GenerateResponsesConfig:
        names = [generator.name for generator in self.generators]
        if len(set(names)) < len(names):
            raise ValueError(f"generators must have different names, but are called {names}.")
        return self


def check(config: GenerateResponsesConfig) -> dict[str, str]:
    """Refuse, before anything starts, prompts or generators that are not there; give the models' identities."""
    from ramo_ray.engines import check_engine
    from ramo_ray.models.resolve import resolve

    _source(config)
    for generator in config.generators:
        check_engine(generator)
        check_model(generator.model, generator.revision, chat=True)
        reached(generator, resolve(generator.model, generator.revision), writes=True)
    return {g.name: _identity(g) for g in config.generators}


def _identity(generator: GeneratorSettings) -> str:
    from ramo_ray.models.resolve import identity, resolve

    own = identity(resolve(generator.model, generator.revision))
    return f"{generator.openai.model}, {own}" if generator.engine == "openai" else own


def main(config: GenerateResponsesConfig) -> list[str]:
    """Write responses of several generators to each prompt, and the trios between them."""
    with open_stage(config) as stage:
        if not stage.finished:
            _generate(config, stage)
        counts = stage.manifest["counts"]
        summary(
            f"responses in {stage.folder}",
            {"prompts": counts["rows_in"], "trios": counts["trios"], "quarantined prompts": counts["quarantined"]}
            | server_lines(stage.manifest.get("served", {})),
        )
    return [stage.next_job("rate", trios=stage.data / "trios")]


def _generate(config: GenerateResponsesConfig, stage: Stage) -> None:
    from jobs.flow import Work, run_groups
    from ramo_ray.pipelines import responses
    from ramo_ray.pipelines.progress import Goal
    from ramo_ray.pipelines.store import PartStore, served

    heading("Responses")
    models = check(config)
    store = PartStore(str(stage.data), TABLES)
    block = config.generators[0].batch_size
    work = Work(
        title="writing",
        source=_source(config),
        shares=None,
        wanted=[""],
        store=store,
        goal=Goal("prompts", "trios"),
        block=block,
        part=config.storage.part_groups or block,
        actors=config.generators[0].actors,
        tell=stage.tell,
        spent=stage.spent,
        through=lambda groups, overseer: responses.generate(groups, config.generators, overseer),
        convert=responses.response_rows,
    )
    with ray_session(config.ray):
        result = run_groups(work)
    counts = stage.counts(rows_in=result.grouped.rows, rows_out=result.counts["out"], other_split=0, bad=result.bad())
    counts |= {name: store.count(table) for name, table in (("trios", "trios"), ("responses_failed", "failures"))}
    totals = store.totals()
    by_server = {"served": counted} if (counted := served(totals)) else {}
    stage.finish(counts=counts, tokens=int(totals["tokens"]), models=models, **by_server)


def _source(config: GenerateResponsesConfig) -> Source:
    from ramo_ray.pipelines.sources import open_prompts

    path = sample_prompts() if config.prompts == SAMPLES else source_path(config, "prompts", config.prompts)
    return open_prompts(path, config.source, config.limit)


if __name__ == "__main__":
    run(main)
