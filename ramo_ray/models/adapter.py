"""The Rule Adapter: (x, y_A, y_B) to the rules that are critical for it (Section 3.3, Appendix E).

A classifier with one output for each rule of its pool, whose ids it keeps as `id2label`; so it refuses another pool.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ramo_ray.core.prompts import adapter_text
from ramo_ray.core.records import Prompt
from ramo_ray.core.selection import select_top
from ramo_ray.errors import FingerprintError, ModelError
from ramo_ray.models.classifier import Classifier, load_classifier, new_classifier, saved_labels
from ramo_ray.models.templates import encode_text
from ramo_ray.settings import DType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def adapter_token_ids(tokenizer: Tokenizer, prompt: Prompt, response_a: str, response_b: str) -> list[int]:
    """Token ids that an adapter reads of a trio: the text of Appendix E.2, after a BOS if the tokenizer writes one."""
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    bos = first if first == [tokenizer.bos_token_id] else []
    return [*bos, *encode_text(tokenizer, adapter_text(prompt, response_a, response_b))]


def new_adapter(path: Path, rule_ids: Sequence[str], *, dtype: DType = "float32", seed: int = 0) -> Any:
    """Make an adapter for a pool from a language model, or go on from an adapter of the same pool.

    Raises `FingerprintError` for an adapter of another pool, `ModelError` for any other classifier.
    """
    saved = saved_labels(path)
    if saved is not None and len(saved) == len(rule_ids):
        _check_pool(path, saved, rule_ids)
    return new_classifier(path, rule_ids, dtype=dtype, seed=seed, problem_type="multi_label_classification")


def load_adapter(path: Path, rule_ids: Sequence[str], *, dtype: DType = "float32") -> Any:
    """Load a trained adapter. Raises `FingerprintError` unless it was trained on this pool, in this order."""
    check_adapter(path, rule_ids)
    return load_classifier(path, dtype=dtype)


class Picked(NamedTuple):
    """Rules of a trio, as places in the pool, and the adapter's probabilities for them."""

    rules: list[int]
    probabilities: list[float]


class RuleAdapter(Classifier):
    """A trained adapter for inference: `logits` [n, R], one column a rule of the pool.

    Raises `FingerprintError` unless it was trained on this pool, in this order.
    """

    def __init__(
        self, path: Path, rule_ids: Sequence[str], *, dtype: DType = "float32", threads: int | None = None
    ) -> None:
        check_adapter(path, rule_ids)
        super().__init__(path, dtype=dtype, threads=threads)

    def pick(self, token_ids: Sequence[Sequence[int]], r: int) -> list[Picked]:
        """The r rules of each trio that are likeliest to be critical, best first. Errors: those of `logits`."""
        logits = self.logits(token_ids)
        return [
            Picked(places.tolist(), (1 / (1 + np.exp(-row[places].astype(np.float64)))).tolist())
            for row, places in zip(logits, select_top(logits, r), strict=True)
        ]


def check_adapter(path: Path, rule_ids: Sequence[str]) -> None:
    """Raise `FingerprintError` for an adapter of another pool or order, `ModelError` for what is no adapter."""
    saved = saved_labels(path)
    if saved is None:
        raise ModelError(f"{path}: is no Rule Adapter but a language model. Give the `model` folder of train_adapter.")
    _check_pool(path, saved, rule_ids)


def _check_pool(path: Path, saved: Sequence[str], rule_ids: Sequence[str]) -> None:
    if list(saved) == list(rule_ids):
        return
    unknown, gone = set(rule_ids) - set(saved), set(saved) - set(rule_ids)
    if unknown or gone:
        difference = (
            f"it has {len(saved)} rules and the pool {len(rule_ids)}; {len(unknown)} of the pool's are new to it"
            f"{_first(unknown)}, {len(gone)} of its own are not in the pool{_first(gone)}"
        )
    else:
        difference = "the rules are the same in another order"
    raise FingerprintError(
        f"{path}: this adapter was trained on another rule pool: {difference}. "
        "Give the pool it was trained on (`rules`), or train an adapter for this one."
    )


def _first(rules: Collection[str]) -> str:
    return f" (such as {min(rules)})" if rules else ""
