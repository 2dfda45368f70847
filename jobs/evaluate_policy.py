"""A policy before and after its alignment: both answer the same prompts, and the answers are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import field_validator

from jobs import generate_responses, label
from jobs.display import console, heading, progress, summary
from jobs.inputs import RuleStageConfig, check_judge, check_model, earlier, require_rows, rule_pool
from jobs.policy_inputs import SAME_PROMPT, PromptStageConfig, prompt_rows
from jobs.policy_scores import AFTER, BEFORE, Row, outcomes, policy_scores, read_answers, table, with_outcomes
from jobs.session import ray_session
from jobs.stage import Stage, locate, open_stage, read_json, write_json, write_text
from ramo_ray.config import run
from ramo_ray.core.records import prompt_id
from ramo_ray.errors import ConfigError
from ramo_ray.settings import (
    AdapterSettings,
    GeneratorSettings,
    JudgeSettings,
    RewardSettings,
    SelectionSettings,
    SourceSettings,
    WriterSettings,
)

PARTS = "parts"
"""Where the answers and their labels are, each the folder of a run of its own."""


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
    """Folders of the aligned policy, the reward model and the adapter."""

    policy: Path
    reward: Path
    adapter: Path


def check(config: EvaluatePolicyConfig) -> Models:
    """Refuse, before anything starts, models that are not there or do not belong together, and a judge likewise."""
    from ramo_ray.models.adapter import check_adapter
    from ramo_ray.models.policy import check_same_tokens
    from ramo_ray.models.resolve import resolve

    models = Models(
        earlier(config, "policy", config.policy, config.run, "train_policy/model"),
        earlier(config, "reward_model", config.reward_model, config.run, "train_reward/model"),
        earlier(config, "adapter_model", config.adapter_model, config.run, "train_adapter/model"),
    )
    check_model(config.before.model, config.before.revision, chat=True)
    for folder in (models.policy, models.reward):
        check_model(str(folder), chat=True)
    _refuse_other_beginning(config, models.policy)
    check_same_tokens(models.policy, resolve(config.before.model, config.before.revision))
    pool = rule_pool(config, config.selection.r)
    check_adapter(models.adapter, pool.ids)
    check_judge(config.judge, pool)
    return models


def _refuse_other_beginning(config: EvaluatePolicyConfig, policy: Path) -> None:
    trained = read_json(policy.parent / "config.json")
    if trained.get("policy", config.before.model) != config.before.model:
        raise ConfigError(
            f"`before.model` = {config.before.model}, but {policy} was aligned from {trained['policy']}. Set "
            f"before.model={trained['policy']}."
        )


def main(config: EvaluatePolicyConfig) -> list[str]:
    """Measure reward, win rate by the judge, KL, length and refusals, before and after."""
    with open_stage(config) as stage:
        if not stage.finished:
            _evaluate(config, stage)
        scores = stage.manifest["scores"]
        summary(f"scores in {stage.folder / 'scores.json'}", _lines(scores))
    beside = stage.folder.parent if config.run and stage.folder.parent == locate(config, "run", config.run) else None
    return [f"ramo report {beside or stage.folder}"]


def _evaluate(config: EvaluatePolicyConfig, stage: Stage) -> None:
    heading("Policy before and after")
    models = check(config)
    prompts = _write_prompts(config, models.policy, stage.folder / "prompts.jsonl")
    parts = stage.folder / PARTS
    with ray_session(config.ray):
        generate_responses.main(_writing(config, models, stage.folder))
        answers = read_answers(parts / "answers")
        require_rows(len(answers.rows), "prompt that both policies answered", parts / "answers")
        trios, judged = table(parts / "answers/data/trios"), dict[str, float]()
        if trios:
            label.main(_judging(config, models, stage.folder))
            judged = outcomes(trios, table(parts / "label/data/preferences"))
        rows = with_outcomes(_measure(config, models, answers.rows), judged)
    _write_rows(stage, rows)
    counts = stage.counts(
        rows_in=prompts.read, rows_out=len(rows), other_split=prompts.seen, bad=[*prompts.bad, *answers.bad]
    )
    scores = policy_scores(rows, config.seed) | {"prompts_seen": prompts.used_seen}
    write_json(stage.folder / "scores.json", scores)
    stage.finish(counts=counts, scores=scores)


class Prompts(NamedTuple):
    """Prompts read, those left out as the policy was aligned on them, those of that kind that stayed, and bad ones."""

    read: int
    seen: int
    used_seen: int | None
    bad: list[Row]


def _write_prompts(config: EvaluatePolicyConfig, policy: Path, file: Path) -> Prompts:
    """Write the prompts that both policies answer, each once."""
    trained = _trained_on(policy)
    if trained is None and config.unseen:
        console.print(f"  what {policy} was aligned on is not known: no prompts.jsonl beside it", markup=False)
    read, left_out, stayed = 0, 0, 0
    bad, used = list[Row](), dict[str, str]()
    for row in prompt_rows(config):
        read += 1
        # A row that is no prompt has no id.
        own = str(row.get("prompt_id"))
        reason = row.get("reason") or (SAME_PROMPT if own in used else None)
        if reason:
            bad.append({"origin": row["origin"], "id": row.get("prompt_id"), "reason": reason})
        elif trained and own in trained and config.unseen:
            left_out += 1
        else:
            stayed += bool(trained and own in trained)
            used[own] = json.dumps({"prompt": row["prompt"]}) + "\n"
    if not used and left_out:
        raise ConfigError(
            f"`prompts`: the policy was aligned on all {left_out} of them. Give others, or set unseen=false to "
            "evaluate it on what it was trained on."
        )
    require_rows(len(used), "prompt that can be used", Path(config.prompts))
    write_text(file, "".join(used.values()))
    return Prompts(read, left_out, None if trained is None else stayed, bad)


def _trained_on(policy: Path) -> set[str] | None:
    """Ids of the prompts that a policy was aligned on, as train_policy left them beside it; None if it did not."""
    file = policy.parent / "prompts.jsonl"
    if not file.exists():
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

    with progress("measuring", None, lambda: (0, f"{len(rows)} prompts")):
        pairs = ray.data.from_arrow(pa.Table.from_pylist(rows, schema=schema("answers")))
        scored = score_pairs(pairs, config.reward, str(models.reward), (BEFORE, AFTER))
        measured: list[Row] = measure_divergence(scored, config.before, str(models.policy)).take_all()
    return sorted(measured, key=lambda row: str(row["prompt_id"]))


def _write_rows(stage: Stage, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stage.data.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), stage.data / "answers.parquet")


def _lines(scores: Row) -> dict[str, object]:
    """What the terminal shows."""
    names = {"reward": "reward", "tokens": "tokens of an answer", "refusal": "share of refusals"}
    lines: dict[str, object] = {"prompts": scores["prompts"]}
    if scores["prompts_seen"]:
        lines["of these, the policy was aligned on"] = scores["prompts_seen"]
    for key, name in names.items():
        if value := scores[key]:
            low, high = value["difference"]["low"], value["difference"]["high"]
            lines[name] = (
                f"{value[BEFORE]['value']:.3f} → {value[AFTER]['value']:.3f}  difference "
                f"{value['difference']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
            )
    if value := scores["win_rate"]:
        lines["win rate by the judge"] = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    lines["won, tied, lost"] = f"{scores['wins']}, {scores['ties']}, {scores['losses']}"
    if value := scores["kl"]:
        lines["KL from the policy before, nats an answer"] = (
            f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
        )
    return lines


if __name__ == "__main__":
    run(main)
