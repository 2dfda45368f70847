"""An engine that answers from a function: dry runs of a configuration, and tests. Its scores mean nothing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ramo_ray.engines.base import Completion, TokenIds, Usage, check_labels, check_prompts, checked, prompt_seed
from ramo_ray.errors import ModelError
from ramo_ray.settings import SamplingSettings

Answer = Callable[[TokenIds, TokenIds], Sequence[float] | np.ndarray]
"""From a prompt and the labels to the labels' log-probabilities."""

CONTEXT = 8192
LABEL_MASS = 0.9
"""Probability that the hashed answer leaves to all labels together; the rest is the other tokens'."""


def hashed_answer(prompt: TokenIds, labels: TokenIds) -> np.ndarray:
    """Log-probabilities that a hash of the prompt decides: the same ever, and a label's own in any list of labels."""
    text = ",".join(map(str, prompt)).encode()
    weights = [
        int.from_bytes(hashlib.blake2b(text, key=str(label).encode(), digest_size=6).digest(), "big")
        for label in labels
    ]
    # Weights from 1 to 9, so that no label's probability is near 0.
    spread = 1 + 8 * np.array(weights) / 2**48
    return np.log(LABEL_MASS * spread / (9 * len(labels)))


class ScriptedEngine:
    """An `Engine` without a model. `answer` gives the log-probabilities; what it writes are tokens of its prompt."""

    applies_chat_template = False
    usage = Usage()

    def __init__(
        self,
        answer: Answer = hashed_answer,
        *,
        vocabulary_size: int = 2**31,
        context_length: int = CONTEXT,
        latency_s: float = 0.0,
    ) -> None:
        self.answer, self.vocabulary_size, self.context_length = answer, vocabulary_size, context_length
        self.latency_s, self.computed = latency_s, 0

    @classmethod
    def for_model(cls, folder: Path, *, max_length: int | None = None, latency_s: float = 0.0) -> ScriptedEngine:
        """Answer by the hash, within the vocabulary and context that a model's `config.json` states."""
        file = folder / "config.json"
        if not file.is_file():
            raise ModelError(
                f"{file} is missing; a dry run needs a model folder's config and tokenizer, not its weights."
            )
        config = json.loads(file.read_text(encoding="utf-8"))
        context = min(config.get("max_position_embeddings", CONTEXT), max_length or CONTEXT)
        return cls(vocabulary_size=config.get("vocab_size", 2**31), context_length=context, latency_s=latency_s)

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """See `Engine.label_logprobs`."""
        check_prompts(prompts, self.context_length)
        check_labels(labels, self.vocabulary_size)
        time.sleep(self.latency_s)
        self.computed += sum(map(len, prompts))
        answers = [np.asarray(self.answer(prompt, labels), dtype=np.float32) for prompt in prompts]
        return checked(np.stack(answers) if answers else np.zeros((0, len(labels)), dtype=np.float32))

    def generate(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        """See `Engine.generate`. Writes tokens that occur in the prompt, in an order that a hash decides."""
        check_prompts(prompts, self.context_length - 1)
        return [self._write(prompt, sampling) for prompt in prompts]

    def _write(self, prompt: TokenIds, sampling: SamplingSettings) -> Completion:
        room = min(sampling.max_tokens, self.context_length - len(prompt))
        generator = np.random.default_rng(prompt_seed(prompt, sampling))
        length = int(generator.integers(1, room + 1))
        tokens = generator.choice(np.asarray(prompt), size=length).tolist()
        return Completion(tokens, "length" if length == room else "stop")

    def close(self) -> None:
        """See `Engine.close`: there is nothing to give back."""
