"""Where a stage finds what an earlier stage wrote, and how judges and pools are checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import PositiveInt

from jobs.session import submitted
from jobs.stage import PlacedConfig, StageConfig, data_folder, locate
from ramo_ray.core.records import fingerprint
from ramo_ray.core.rules import RulePool, load_pool
from ramo_ray.errors import ConfigError, SourceError
from ramo_ray.pipelines.reading import SUFFIXES
from ramo_ray.settings import EngineSettings, JudgeSettings, SourceSettings, SplitSettings

if TYPE_CHECKING:
    from ramo_ray.pipelines.sources import Source

E = TypeVar("E", bound=EngineSettings)
SAMPLES = "samples"
"""As `prompts`: the prompts that the package carries."""


class RuleConfig(PlacedConfig):
    """What all jobs that work with rules share."""

    rules: str = ""
    """A rule pool in YAML. Empty: the paper's 100 rules."""


class RuleStageConfig(RuleConfig, StageConfig):
    """What all stages that work with rules share."""


class SourceStageConfig(RuleStageConfig):
    """What all stages that read trios share."""

    trios: str = ""
    """A preference source: file, folder, glob or hub id. Empty: what generate_responses wrote in `run`."""
    run: str = ""
    """Output of the pipeline whose earlier stages are read."""
    limit: PositiveInt | None = None
    """Rows of `trios` that are read. What was generated is read whole."""
    source: SourceSettings = SourceSettings()


class TrioStageConfig(SourceStageConfig):
    """What those share that split the trios by prompt."""

    splits: SplitSettings = SplitSettings()


def earlier(config: PlacedConfig, key: str, given: str, run: str, relative: str) -> Path:
    """The result of an earlier stage: a path given under `key`, or the usual place inside `run`."""
    if given:
        found = locate(config, key, given)
    elif run:
        stage, _, inside = relative.partition("/")
        found = data_folder(locate(config, "run", run) / stage, inside)
    else:
        raise ConfigError(f"`{key}` is missing: give its path, or `run` = the output of the pipeline that made it.")
    if not found.exists():
        raise ConfigError(
            f"`{key}`: {found} does not exist. Run {relative.partition('/')[0]} first, or correct the path."
        )
    return found


def sample_prompts() -> str:
    """Path of the prompts that the package carries."""
    import ramo_ray

    return str(Path(ramo_ray.__file__).with_name("samples") / "prompts.jsonl")


def open_source(config: SourceStageConfig) -> Source:
    """The source of trios: `trios`, or what generate_responses wrote in `run`."""
    from ramo_ray.pipelines.sources import open_trios

    if config.trios:
        return open_trios(source_path(config, "trios", config.trios), config.source, config.limit)
    generated = earlier(config, "trios", "", config.run, "generate_responses/data/trios")
    return open_trios(str(generated), config.source, None)


def source_path(config: StageConfig, key: str, path: str) -> str:
    """A source's path as it can be opened: located if it lies here, untouched if it is a hub id."""
    try:
        located = str(locate(config, key, path))
    except ConfigError:
        if _looks_local(path):
            raise
        return path
    return path if not Path(located).exists() and not _looks_local(path) else located


def _looks_local(path: str) -> bool:
    return (
        path.startswith(("/", ".", "~"))
        or any(c in path for c in "*?[")
        or path.count("/") != 1
        or path.endswith(SUFFIXES)
    )


def rule_pool(config: RuleConfig, r: int) -> RulePool:
    """The configured pool, checked against the rule budget."""
    pool = load_pool(str(locate(config, "rules", config.rules)) if config.rules else "")
    pool.require(r)
    return pool


class CheckedJudge(NamedTuple):
    """A judge whose tokenizer, template and labels were checked, and whose server, if it has one, was asked.

    `origin` is all that its ratings depend on, by name; `settings` are the configured ones with what `auto` was found
    to be, so that every actor asks the same way.
    """

    settings: JudgeSettings
    origin: dict[str, Any]
    exact_seam: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the origin."""
        return fingerprint(**self.origin)


def check_judge(judge: JudgeSettings, pool: RulePool) -> CheckedJudge:
    """Resolve a judge and check it on this machine, before any actor starts.

    Raises:
        ModelError: no such model, or no chat template. LabelError: labels that one token cannot tell apart.
        MissingPackageError: the engine's package is not installed. ServerError: the judge's server is not there, or
        not as configured.
    """
    from ramo_ray.engines import check_engine
    from ramo_ray.judging.prompts import JudgePrompts, by_chat, judge_origin
    from ramo_ray.models.resolve import identity, resolve
    from ramo_ray.models.templates import load_tokenizer

    check_engine(judge)
    refuse_relative_model(judge.model)
    path = resolve(judge.model, judge.revision)
    tokenizer = load_tokenizer(path)
    judge = reached(judge, path)
    prompts = JudgePrompts(tokenizer, judge, pool, bare=by_chat(judge))
    origin = judge_origin(judge, identity(path), tokenizer.chat_template)
    if judge.too_long == "truncate_response":
        # How much of a response is read depends on the longest rule, so a pool may not grow then.
        origin["rules"] = pool.fingerprint
    return CheckedJudge(judge, origin, all(prompts.exact_seam.values()))


def reached(settings: E, path: Path, *, writes: bool = False) -> E:
    """Settings that name the route which a model's server answers; as they are, for a model that has none.

    Raises:
        ServerError: the server is not there, refuses the key, lacks the model or cannot be asked; or it `writes`,
            and takes no token ids.
    """
    if settings.engine != "openai":
        return settings
    from ramo_ray.engines.openai_engine import OpenAIEngine

    engine = OpenAIEngine(settings, path)
    try:
        if writes:
            engine.require_token_ids()
    finally:
        engine.close()
    server = settings.openai.model_copy(update={"route": engine.route.name})
    return settings.model_copy(update={"openai": server})


def refuse_relative_model(name: str) -> None:
    """Refuse a model's folder that only this process would find: a submitted job's copy of the working directory."""
    folder = Path(name).expanduser()
    if submitted() and not folder.is_absolute() and (folder.exists() or name.startswith(".")):
        raise ConfigError(
            f"model {name}: a submitted job runs in a temporary copy of the working directory. "
            "Give the absolute path of a folder that every node mounts, or a hub id."
        )


def check_model(name: str, revision: str | None = None, *, chat: bool = False) -> None:
    """Resolve a model by name. Raises `ModelError` if it is not there or, for `chat`, cannot end a turn."""
    from ramo_ray.models.resolve import resolve
    from ramo_ray.models.templates import end_of_turn_id, load_tokenizer

    refuse_relative_model(name)
    path = resolve(name, revision)
    if chat:
        end_of_turn_id(load_tokenizer(path))


def require_rows(count: int, what: str, where: Path) -> None:
    """Refuse to go on with nothing."""
    if count == 0:
        raise SourceError(f"{where}: holds no {what}; the stage before it left nothing to go on with.")
