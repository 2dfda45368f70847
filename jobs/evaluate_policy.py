"""A policy before and after its alignment: both answer the same prompts, and the answers are compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import field_validator

from jobs import generate_responses, label
from jobs.changes import differences
from jobs.display import console, heading, progress, summary
from jobs.inputs import RuleStageConfig, check_judge, check_model, earlier, rule_pool
from jobs.policy_inputs import SAME_PROMPT, PromptStageConfig, prompt_rows
from jobs.policy_scores import (
    AFTER,
    BEFORE,
    Row,
    outcomes,
    policy_scores,
    read_answers,
    score_lines,
    sort_out,
    table,
    with_outcomes,
    write_rows,
)
from jobs.session import ray_session
from jobs.stage import PARTS, Stage, locate, open_stage, read_json, write_json, write_text
from ramo_ray.config import run
from ramo_ray.core.records import content_hash, prompt_id
from ramo_ray.errors import ConfigError, FingerprintError, SourceError
from ramo_ray.settings import (
    AdapterSettings,
    GeneratorSettings,
    JudgeSettings,
    RewardSettings,
    SelectionSettings,
    SourceSettings,
    WriterSettings,
)


class EvaluatePolicyConfig(PromptStageConfig, RuleStageConfig):
    job: ClassVar[str] = "evaluate_policy"
    run: str = ""
    """Output of the pipeline whose policy, adapter and reward model are used."""
    unseen: bool = True
    """Leave out prompts that the policy was aligned on."""
    before: WriterSettings = WriterSettings()
    """The policy that PPO began with, and how both of them write. Its actors measure the KL divergence too, for which
    both policies have to fit on one."""
    policy: str = ""
    """Folder of the aligned policy. Empty: what train_policy wrote in `run`."""
    reward_model: str = ""
    """Folder of the reward model, which may have a tokenizer of its own. Empty: what train_reward wrote in `run`."""
    adapter_model: str = ""
    """Folder of the Rule Adapter. Empty: what train_adapter wrote in `run`."""
    judge: JudgeSettings = JudgeSettings()
    adapter: AdapterSettings = AdapterSettings()
    selection: SelectionSettings = SelectionSettings()
    reward: RewardSettings = RewardSettings()

    @field_validator("before")
    @classmethod
    def _has_weights(cls, before: WriterSettings) -> WriterSettings:
        if before.engine not in ("transformers", "vllm"):
            raise ValueError(
                f"engine {before.engine} has no weights, whose probabilities are compared. Take transformers or vllm."
            )
        return before


class Models(NamedTuple):
    """Folders of both policies, the reward model and the adapter."""

    before: Path
    policy: Path
    reward: Path
    adapter: Path


def check(config: EvaluatePolicyConfig) -> Models:
    """Refuse, before anything starts, models that are not there or do not belong together, and a judge likewise."""
    from ramo_ray.models.adapter import check_adapter
    from ramo_ray.models.policy import check_same_tokens
    from ramo_ray.models.resolve import resolve
    from ramo_ray.models.reward import check_reward_model

    check_model(config.before.model, config.before.revision, chat=True)
    models = Models(
        resolve(config.before.model, config.before.revision),
        earlier(config, "policy", config.policy, config.run, "train_policy/model"),
        earlier(config, "reward_model", config.reward_model, config.run, "train_reward/model"),
        earlier(config, "adapter_model", config.adapter_model, config.run, "train_adapter/model"),
    )
    for folder in (models.policy, models.reward):
        check_model(str(folder), chat=True)
    _refuse_other_beginning(config, models.policy)
    check_same_tokens(models.policy, models.before)
    check_reward_model(models.reward)
    pool = rule_pool(config, config.selection.r)
    check_adapter(models.adapter, pool.ids)
    check_judge(config.judge, pool)
    return models


def _trained(policy: Path) -> bool:
    """Whether a policy lies where train_policy put it, beside what it was made with."""
    return read_json(policy.parent / "manifest.json").get("job") == "train_policy"


def _refuse_other_beginning(config: EvaluatePolicyConfig, policy: Path) -> None:
    if not _trained(policy):
        return
    began = read_json(policy.parent / "config.json")
    own = {"model": config.before.model, "revision": config.before.revision}
    trained = {"model": began["policy"], "revision": began["policy_revision"]}
    if other := [key for key in own if own[key] != trained[key]]:
        key = other[0]
        raise ConfigError(
            f"`before.{key}` = {own[key]}, but {policy} was aligned from {trained[key]}. Set "
            f"before.{key}={'null' if trained[key] is None else trained[key]}."
        )


def main(config: EvaluatePolicyConfig) -> list[str]:
    """Measure reward, win rate by the judge, KL, length and refusals, before and after."""
    with open_stage(config) as stage:
        if stage.gave_up_too_early(config.judge.max_tries):
            stage.reopen()
        if not stage.finished:
            _evaluate(config, stage)
        summary(f"scores in {stage.folder / 'scores.json'}", score_lines(stage.manifest["scores"]))
    beside = stage.folder.parent if config.run and stage.folder.parent == locate(config, "run", config.run) else None
    return [f"ramo report {beside or stage.folder}"]


def _evaluate(config: EvaluatePolicyConfig, stage: Stage) -> None:
    heading("Policy before and after")
    models = check(config)
    known = _trained_on(models.policy)
    if known is None and config.unseen:
        console.print(
            f"  what {models.policy} was aligned on is not known: it is not where train_policy puts one", markup=False
        )
    prompts = _write_prompts(config, known or set(), stage.folder / "prompts.jsonl")
    origin = _claim(stage, models)
    parts = stage.folder / PARTS
    with ray_session(config.ray):
        generate_responses.main(_writing(config, models, stage.folder))
        answers = read_answers(parts / "answers")
        _require(answers.rows, answers.bad, parts / "answers" / "quarantine.parquet")
        judged = _judged(config, models, stage.folder)
        rows = with_outcomes(_measure(config, models, answers.rows), judged.outcomes)
    complete, bad = sort_out(rows, judged.reasons)
    _require(complete, bad, parts)
    stage.data.mkdir(exist_ok=True)
    write_rows(complete, stage.data / "answers.parquet")
    counts = stage.counts(
        rows_in=prompts.read,
        rows_out=len(complete),
        other_split=prompts.seen,
        bad=[*prompts.bad, *answers.bad, *bad],
    )
    seen = None if known is None else sum(row["prompt_id"] in known for row in complete)
    scores = policy_scores(complete, config.seed) | {"prompts_seen": seen}
    write_json(stage.folder / "scores.json", scores)
    stage.finish(
        counts=counts | judged.given_up, scores=scores, max_tries=config.judge.max_tries, **origin, **_cost(parts)
    )


def _claim(stage: Stage, models: Models) -> dict[str, Any]:
    """What the run is made of; refused if an earlier start, whose answers are there, was made of something else."""
    from ramo_ray.models.resolve import identity

    origin = {
        "prompts": content_hash((stage.folder / "prompts.jsonl").read_text(encoding="utf-8")),
        "models": {name: identity(folder) for name, folder in models._asdict().items()},
    }
    file = stage.folder / "origin.json"
    before = read_json(file)
    if before and stage.begun and (changed := list(differences(before, origin))):
        raise FingerprintError(
            f"{stage.folder} holds answers of another origin: {'; '.join(changed)}. Give another `output`, or remove "
            "that folder to start over."
        )
    write_json(file, origin)
    return origin


def _require(rows: Sized, bad: Sequence[Row], where: Path) -> None:
    """Refuse to go on where no prompt is left, with the commonest reason."""
    if not len(rows):
        ((reason, count),) = Counter(row["reason"] for row in bad).most_common(1) or [("there was none", 0)]
        raise SourceError(f"no prompt is left to compare answers on. {count} times: {reason}. See {where}.")


class Judgement(NamedTuple):
    """By prompt: outcomes, and why there is none; and whether more tries may give some."""

    outcomes: dict[str, float]
    reasons: dict[str, str]
    given_up: dict[str, int]


def _judged(config: EvaluatePolicyConfig, models: Models, folder: Path) -> Judgement:
    trios = table(folder / PARTS / "answers/data/trios")
    if not trios:
        return Judgement({}, {}, {})
    label.main(_judging(config, models, folder))
    own = folder / PARTS / "label"
    prompt_of = {trio["trio_id"]: trio["prompt_id"] for trio in trios}
    reasons = {
        prompt_of[row["id"]]: row["reason"] for row in table(own / "quarantine.parquet") if row["id"] in prompt_of
    }
    counts = read_json(own / "manifest.json")["counts"]
    return Judgement(outcomes(trios, table(own / "data/preferences")), reasons, {"given_up": counts["given_up"]})


def _cost(parts: Path) -> dict[str, Any]:
    """What the parts took, for the report's table of costs."""
    answers, judged = (read_json(parts / name / "manifest.json") for name in ("answers", "label"))
    cost = sum(float(one.get("cost", 0.0)) for one in (answers, judged))
    calls = judged.get("judge", {})
    tokens = int(answers.get("tokens", 0)) + int(calls.get("tokens", 0))
    return {"judge": dict(calls) | {"tokens": tokens}, **({"cost": cost} if cost else {})}


class Prompts(NamedTuple):
    """Prompts read, those left out as the policy was aligned on them, and bad ones."""

    read: int
    seen: int
    bad: list[Row]


def _write_prompts(config: EvaluatePolicyConfig, known: set[str], file: Path) -> Prompts:
    """Write the prompts that both policies answer, each once; without those `known`, by id, unless they are wanted."""
    read = left_out = 0
    bad, used = list[Row](), dict[str, str]()
    for row in prompt_rows(config):
        read += 1
        # A row that is no prompt has no id.
        own = str(row.get("prompt_id"))
        reason = row.get("reason") or (SAME_PROMPT if own in used else None)
        if reason:
            bad.append({"origin": row["origin"], "id": row.get("prompt_id"), "reason": reason})
        elif config.unseen and own in known:
            left_out += 1
        else:
            used[own] = json.dumps({"prompt": row["prompt"]}) + "\n"
    if not used and left_out:
        raise ConfigError(
            f"`prompts`: the policy was aligned on all {left_out} of them. Give others, or set unseen=false to "
            "evaluate it on what it was trained on."
        )
    _require(used, bad, Path(config.prompts))
    write_text(file, "".join(used.values()))
    return Prompts(read, left_out, bad)


def _trained_on(policy: Path) -> set[str] | None:
    """Ids of the prompts that a policy was aligned on, as train_policy left them beside it; None if it did not."""
    file = policy.parent / "prompts.jsonl"
    if not (_trained(policy) and file.exists()):
        return None
    with file.open(encoding="utf-8") as lines:
        return {prompt_id(json.loads(json.loads(line)["label"])) for line in lines}


def _writing(config: EvaluatePolicyConfig, models: Models, folder: Path) -> generate_responses.GenerateResponsesConfig:
    own = config.before.model_dump()
    return generate_responses.GenerateResponsesConfig(
        output=str(folder / PARTS / "answers"),
        prompts=str(folder / "prompts.jsonl"),
        source=SourceSettings(max_chars=config.source.max_chars),
        generators=[
            GeneratorSettings.model_validate(own | {"name": BEFORE}),
            GeneratorSettings.model_validate(own | {"name": AFTER, "model": str(models.policy), "revision": None}),
        ],
        **_shared(config),
    )


def _judging(config: EvaluatePolicyConfig, models: Models, folder: Path) -> label.LabelConfig:
    return label.LabelConfig(
        output=str(folder / PARTS / "label"),
        trios=str(folder / PARTS / "answers/data/trios"),
        source=SourceSettings(max_chars=config.source.max_chars),
        labelled="all",
        model=str(models.adapter),
        rules=str(locate(config, "rules", config.rules)) if config.rules else "",
        judge=config.judge,
        adapter=config.adapter,
        selection=config.selection,
        **_shared(config),
    )


def _shared(config: EvaluatePolicyConfig) -> dict[str, Any]:
    """What the parts have from the whole, which alone decides how many bad rows are too many."""
    return {"ray": config.ray, "storage": config.storage, "seed": config.seed, "max_bad_fraction": 1.0}


def _measure(config: EvaluatePolicyConfig, models: Models, rows: list[Row]) -> list[Row]:
    """Add rewards, lengths and the divergence."""
    import pyarrow as pa
    import ray

    from ramo_ray.pipelines.divergence import measure_divergence
    from ramo_ray.pipelines.rewards import score_pairs
    from ramo_ray.pipelines.tables import schema

    whole, size = pa.Table.from_pylist(rows, schema=schema("answers")), config.reward.batch_size
    with progress("measuring", None, lambda: (0, f"{len(rows)} prompts")):
        # Blocks are what actors share.
        pairs = ray.data.from_arrow([whole.slice(start, size) for start in range(0, len(rows), size)])
        scored = score_pairs(pairs, config.reward, str(models.reward), (BEFORE, AFTER))
        measured: list[Row] = measure_divergence(scored, config.before, str(models.policy)).take_all()
    return sorted(measured, key=lambda row: str(row["prompt_id"]))


if __name__ == "__main__":
    run(main)
