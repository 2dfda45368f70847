"""The two tasks behind one interface: what is trained, on which columns, under which loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ramo_ray.models.adapter import new_adapter
from ramo_ray.models.classifier import pad_right
from ramo_ray.models.reward import new_reward_model
from ramo_ray.training import losses
from ramo_ray.training.batches import MicroBatch
from ramo_ray.training.examples import Examples
from ramo_ray.training.run import Task, TrainingRun

if TYPE_CHECKING:
    from torch import Tensor


class Outcome(NamedTuple):
    """What one micro-batch gave: its weighted loss, its right answers, and the tokens it took."""

    loss: Tensor
    answers: losses.Answers
    tokens: int


class TrainingTask(Protocol):
    """What the loop needs to know of a task."""

    def new_model(self, base: Path) -> Any: ...

    def outcome(self, engine: Any, examples: Examples, part: MicroBatch, weights: Tensor) -> Outcome: ...


class AdapterTask:
    """Multi-label classification: which rules of the pool are critical for a trio."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def new_model(self, base: Path) -> Any:
        return new_adapter(base, self._run.rule_ids, dtype=self._run.settings.dtype, seed=self._run.seed)

    def outcome(self, engine: Any, examples: Examples, part: MicroBatch, weights: Tensor) -> Outcome:
        import torch

        texts = examples.lists("input_ids", part.rows)
        targets = torch.zeros(len(texts), len(self._run.rule_ids), device=weights.device)
        for row, critical in enumerate(examples.lists("labels", part.rows)):
            targets[row, critical] = 1
        logits = forward(engine, texts)
        loss = losses.multi_label_loss(logits, targets, weights)
        answers = losses.rules_recalled(logits, targets, weights, r=self._run.r)
        return Outcome(loss, answers, _tokens(texts, part))


class RewardTask:
    """Bradley-Terry: the chosen response's reward above the rejected one's."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def new_model(self, base: Path) -> Any:
        return new_reward_model(base, dtype=self._run.settings.dtype, seed=self._run.seed)

    def outcome(self, engine: Any, examples: Examples, part: MicroBatch, weights: Tensor) -> Outcome:
        chosen, rejected = examples.lists("chosen_ids", part.rows), examples.lists("rejected_ids", part.rows)
        # One forward pass for both: ZeRO 3 gathers the weights once, and both see the same dropout stream.
        rewards = forward(engine, [*chosen, *rejected])[:, 0]
        first, second = rewards[: len(chosen)], rewards[len(chosen) :]
        loss = losses.bradley_terry_loss(first, second, weights)
        return Outcome(
            loss, losses.pairs_in_order(first, second, weights), _tokens(chosen, part) + _tokens(rejected, part)
        )


TASKS: dict[Task, type[AdapterTask] | type[RewardTask]] = {"adapter": AdapterTask, "reward": RewardTask}


def forward(engine: Any, token_ids: Sequence[NDArray[np.int64]]) -> Tensor:
    """Outputs [n, labels] of the classifier in a DeepSpeed engine, padded on the right."""
    import torch

    padded, mask = pad_right(token_ids, engine.module.config.pad_token_id)
    output: Tensor = engine(
        input_ids=torch.from_numpy(padded).to(engine.device),
        attention_mask=torch.from_numpy(mask).to(engine.device),
        use_cache=False,
    ).logits
    return output


def _tokens(texts: Sequence[NDArray[np.int64]], part: MicroBatch) -> int:
    return sum(len(ids) for ids, weight in zip(texts, part.weights, strict=True) if weight > 0)
