"""What a policy is aligned and evaluated with: prompts that it can answer, and models that fit each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveInt

from jobs.inputs import SAMPLES, sample_prompts, source_path
from jobs.stage import StageConfig
from ramo_ray.core.records import Prompt
from ramo_ray.errors import ModelError, RolesError, SourceError
from ramo_ray.models.reward import check_reward_model
from ramo_ray.models.templates import encode_chat, end_of_turn_id, load_tokenizer, prompt_text, same_tokens
from ramo_ray.ppo.settings import PPOSettings
from ramo_ray.settings import SourceSettings

SAME_PROMPT = "the same prompt again"
HELD_PROMPTS = 32
"""Prompts whose answers tell the spread of rewards."""


class PromptStageConfig(StageConfig):
    """What those jobs share that a policy answers prompts in."""

    prompts: str = SAMPLES
    """A file, glob or hub id of prompts (`prompt`: text or messages), or `samples`. With a `source.format`, the prompts
    of a preference source."""
    limit: PositiveInt | None = None
    """Rows of the source that are read."""
    source: SourceSettings = SourceSettings()


def prompt_rows(config: PromptStageConfig) -> Iterator[dict[str, Any]]:
    """Rows of the source, of which only the prompts are used: of prompts, or of preferences where a format is named."""
    from ramo_ray.pipelines.sources import open_prompts, open_trios, read_rows

    path = sample_prompts() if config.prompts == SAMPLES else source_path(config, "prompts", config.prompts)
    opened = open_prompts if config.source.format == "auto" else open_trios
    return read_rows(opened(path, config.source, config.limit))


class Prompts(NamedTuple):
    """What became of a source's prompts: rows read, those in the file, their tokens on average, and those set aside."""

    read: int
    used: list[Prompt]
    tokens: float
    bad: list[dict[str, Any]]


def write_prompts(rows: Iterable[dict[str, Any]], policy: Path, settings: PPOSettings, file: Path) -> Prompts:
    """Write OpenRLHF's prompt file: the text as the policy reads it, and the messages as JSON for an endpoint.

    Set aside are prompts that leave no room for an answer, that the chat template refuses, that spell a control token
    (OpenRLHF would read it as one), that are there twice, and the last ones that do not fill a step.

    Raises:
        SourceError: too few for one step.
    """
    tokenizer = load_tokenizer(policy)
    room = settings.max_length - settings.rollout.max_new_tokens
    read, seen, bad = 0, set[str](), list[dict[str, Any]]()
    good: list[tuple[str, Prompt, int]] = []
    for row in rows:
        read += 1
        aside = {"origin": row["origin"], "id": row.get("prompt_id")}
        reason = row.get("reason") or (SAME_PROMPT if row["prompt_id"] in seen else None)
        if reason is None:
            seen.add(row["prompt_id"])
            text, length, reason = _readable(tokenizer, row["prompt"], room)
        if reason:
            bad.append(aside | {"reason": reason})
        else:
            good.append((text, row["prompt"], length))
    step = settings.rollout.prompts_per_step
    if len(good) < step:
        raise SourceError(
            f"prompts: {len(good)} of {read} can be used, and a step takes rollout.prompts_per_step = {step}. "
            + _reasons(bad)
        )
    used, left = good[: len(good) // step * step], len(good) % step
    bad += [{"origin": "prompts", "id": None, "reason": "left over: does not fill a step"}] * left
    lines = (json.dumps({"input": text, "label": json.dumps(prompt)}) + "\n" for text, prompt, _ in used)
    file.write_text("".join(lines), encoding="utf-8")
    tokens = sum(length for _, _, length in used) / len(used)
    return Prompts(read, [prompt for _, prompt, _ in used], tokens, bad)


def _readable(tokenizer: Any, prompt: Prompt, room: int) -> tuple[str, int, str | None]:
    """The prompt as text, its length in tokens, and why it cannot be used, if it cannot."""
    try:
        ids = encode_chat(tokenizer, prompt, add_generation_prompt=True)
        text = prompt_text(tokenizer, prompt)
    except RolesError:
        return "", 0, "the policy's chat template does not take its order of roles"
    reason = None
    if len(ids) > room:
        reason = f"too long: {len(ids):,} tokens, and max_length less max_new_tokens leaves {room:,}"
    elif tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] != ids:
        reason = "spells a control token of the policy's"
    return text, len(ids), reason


def _reasons(bad: list[dict[str, Any]]) -> str:
    return f"The first that cannot: {bad[0]['reason']}." if bad else "Give more prompts, or make steps smaller."


def check_policy(policy: Path) -> None:
    """Refuse a policy that cannot chat, or that brings code of its own, which OpenRLHF would run.

    Raises:
        ModelError: says which.
    """
    refuse_code("policy", policy)
    end_of_turn_id(load_tokenizer(policy))


def check_reward(reward: Path, policy: Path) -> None:
    """Refuse a reward model that PPO's own reward actor cannot use, before any GPU is taken.

    Raises:
        ModelError: another number of outputs, code of its own, or tokens that are not the policy's.
    """
    refuse_code("reward model", reward)
    check_reward_model(reward)
    if not same_tokens(load_tokenizer(policy), load_tokenizer(reward)):
        raise ModelError(
            f"{reward}: its tokenizer or chat template is not the policy's, so it would read other tokens than it was "
            "trained on. Serve it behind an endpoint, which is given texts, and name that in ppo.reward.endpoints."
        )


def refuse_code(role: str, folder: Path) -> None:
    """Raise `ModelError` for a model folder that names code of its own: OpenRLHF trusts any."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.exists() and "auto_map" in json.loads(file.read_text(encoding="utf-8")):
            raise ModelError(
                f"{folder}: the {role}'s {name} names code of its own (auto_map), which OpenRLHF would run. Take a "
                "model that transformers knows, or remove that entry if it does."
            )
