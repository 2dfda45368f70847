"""The reward model: a conversation to one number (equations 5 to 7), read at its end-of-turn token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramo_ray.errors import ModelError
from ramo_ray.models.classifier import Classifier, load_classifier, new_classifier
from ramo_ray.settings import DType

LABELS = ("reward",)


def new_reward_model(path: Path, *, dtype: DType = "float32", seed: int = 0) -> Any:
    """Make a reward model from a language model, or go on from one (Skywork-Reward, say), whose head is kept.

    Raises `ModelError` for a classifier with another number of outputs.
    """
    return new_classifier(path, LABELS, dtype=dtype, seed=seed)


def check_reward_model(path: Path) -> None:
    """Raise `ModelError` unless a folder's configuration is that of a classifier with one output.

    Loads neither weights nor transformers, which takes seconds.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or []):
        raise ModelError(f"{path}: is a language model, and a reward model has one output. Give the folder of one.")
    # As transformers has it, a configuration that does not say has two.
    outputs = len(config.get("id2label", ("0", "1")))
    if outputs != 1:
        raise ModelError(f"{path}: has {outputs} outputs, and a reward model has one. Give the folder of one.")


def load_reward_model(path: Path, *, dtype: DType = "float32") -> Any:
    """Load a trained reward model. Raises `ModelError` unless it has a head with one output."""
    model = load_classifier(path, dtype=dtype)
    _check_scalar(path, model)
    return model


class RewardModel(Classifier):
    """A trained reward model for inference. Rows are made by `models.templates.reward_token_ids`."""

    def __init__(self, path: Path, *, dtype: DType = "float32", threads: int | None = None) -> None:
        super().__init__(path, dtype=dtype, threads=threads)
        _check_scalar(path, self.model)

    def score(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Rewards [n] at each row's last token; in float32 the same within 1e-4 in any batch. Errors: `logits`."""
        return self.logits(token_ids)[:, 0]


def _check_scalar(path: Path, model: Any) -> None:
    if model.config.num_labels != 1:
        raise ModelError(
            f"{path}: has {model.config.num_labels} outputs, but a reward model has one. "
            "Give the `model` folder of a reward model."
        )
