"""How a reward model's numbers lie for what a policy writes, measured before PPO begins: its scale is its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ramo_ray.core.records import Prompt
from ramo_ray.errors import ModelError, ServerError
from ramo_ray.models.templates import encode_chat, end_of_turn_id, load_tokenizer
from ramo_ray.ppo.launcher import Spread
from ramo_ray.ppo.reward_function import RewardClient, RewardStopped
from ramo_ray.settings import DType, EngineSettings, SamplingSettings

LEAST = 2
"""Rewards that have a spread."""
LEAST_DEVIATION = 1e-6


def first_rewards(
    policy: Path,
    reward: Path | None,
    endpoints: Mapping[str, str],
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    *,
    dtype: DType,
) -> list[float]:
    """Rewards of what a policy writes before PPO.

    Args:
        policy: folder of the policy.
        reward: folder of the reward model; None where endpoints are asked.
        endpoints: what `reward_function` takes from the environment.
        prompts: to be answered.
        sampling: as in PPO's rollouts.
        dtype: of policy and reward model.
    """
    answers = first_answers(policy, prompts, sampling, dtype)
    if reward is not None:
        return by_model(reward, answers, dtype)
    client = RewardClient(endpoints)
    try:
        return by_endpoint(client, policy, prompts, answers)
    except RewardStopped as stopped:
        raise ServerError(str(stopped)) from None
    finally:
        client.close()


def first_answers(
    policy: Path, prompts: Sequence[Prompt], sampling: SamplingSettings, dtype: DType
) -> list[tuple[list[int], list[int]]]:
    """What a policy writes to each prompt: token ids of the prompt and of the answer, its end of turn included."""
    from ramo_ray.engines.transformers_engine import TransformersEngine

    tokenizer = load_tokenizer(policy)
    asked = [encode_chat(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
    engine = TransformersEngine(EngineSettings(model=str(policy), dtype=dtype), policy)
    try:
        written = engine.generate(asked, sampling)
    finally:
        engine.close()
    end = end_of_turn_id(tokenizer)
    return [
        (ids, [*done.token_ids, *([end] if done.finish_reason == "stop" else [])])
        for ids, done in zip(asked, written, strict=True)
    ]


def by_model(reward: Path, answers: Sequence[tuple[list[int], list[int]]], dtype: DType) -> list[float]:
    """Rewards of answers, as PPO's own reward actor computes them: read at the last token, whatever it is."""
    from ramo_ray.models.reward import RewardModel

    rows = [prompt + answer for prompt, answer in answers]
    return [float(score) for score in RewardModel(reward, dtype=dtype).score(rows)]


def by_endpoint(
    client: RewardClient,
    policy: Path,
    prompts: Sequence[Prompt],
    answers: Sequence[tuple[list[int], list[int]]],
) -> list[float]:
    """Rewards of answers, as endpoints are asked during PPO: the whole text, the prompt's, and its messages as JSON."""
    tokenizer = load_tokenizer(policy)
    return [
        client.ask(
            [tokenizer.decode(ids + answer, skip_special_tokens=False)],
            [tokenizer.decode(ids, skip_special_tokens=False)],
            [json.dumps(prompt)],
        )["rewards"]
        for prompt, (ids, answer) in zip(prompts, answers, strict=True)
    ]


def spread_of(rewards: Sequence[float], model: str) -> Spread:
    """Mean and sample deviation.

    Raises:
        ModelError: fewer than two rewards, or all the same: nothing could be learnt from them.
    """
    found = Spread(float(np.mean(rewards)), float(np.std(rewards, ddof=1)) if len(rewards) >= LEAST else 0.0)
    if not found.deviation > LEAST_DEVIATION:
        raise ModelError(
            f"{model}: gives {len(rewards)} answers of the policy the same reward ({found.mean:.4g}), from which "
            "nothing can be learnt. Take another reward model, or more prompts."
        )
    return found
