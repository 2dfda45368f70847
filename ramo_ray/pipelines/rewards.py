"""Rewards of pairs of responses: a reward model scores both of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramo_ray.core.records import Message, Prompt
from ramo_ray.errors import RolesError
from ramo_ray.models.reward import RewardModel
from ramo_ray.models.templates import load_tokenizer, reward_token_ids
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.settings import RewardSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def score_pairs(
    pairs: Dataset, reward: RewardSettings, model: str, sides: tuple[str, str] = ("chosen", "rejected")
) -> Dataset:
    """Add `reward_<side>` to rows with a `prompt` and, at both sides, a response; null where the model cannot take one.

    A response is a list of one message, as in `preferences`, or a text.
    """
    return pairs.map_batches(
        PairScorer,
        fn_constructor_kwargs={"settings": reward.model_dump(mode="json"), "model": model, "sides": sides},
        batch_format="pyarrow",
        batch_size=reward.batch_size,
        **pool_options(reward.actors),
    )


class PairScorer:
    """Actor that owns a reward model."""

    def __init__(self, settings: Mapping[str, Any], model: str, sides: tuple[str, str]) -> None:
        reward = RewardSettings.model_validate(settings)
        path = Path(model)
        self.sides = sides
        self.tokenizer = load_tokenizer(path)
        self.model = RewardModel(path, dtype=reward.dtype, threads=reward.threads or os.cpu_count())
        self.max_length = min(reward.max_length, self.model.context_length)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        for side in self.sides:
            pairs = zip(batch["prompt"].to_pylist(), batch[side].to_pylist(), strict=True)
            ids = [self._token_ids(prompt, _text(response)) for prompt, response in pairs]
            places = [place for place, own in enumerate(ids) if 0 < len(own) <= self.max_length]
            scores: list[float | None] = [None] * len(ids)
            if places:
                for place, score in zip(places, self.model.score([ids[p] for p in places]), strict=True):
                    scores[place] = float(score)
            batch = batch.append_column(f"reward_{side}", pa.array(scores, pa.float32()))
        return batch

    def _token_ids(self, prompt: Prompt, response: str) -> list[int]:
        """The conversation's token ids; none where the model's template does not take its order of roles."""
        try:
            return reward_token_ids(self.tokenizer, prompt, response)
        except RolesError:
            return []


def _text(response: str | list[Message]) -> str:
    return response if isinstance(response, str) else response[0]["content"]
