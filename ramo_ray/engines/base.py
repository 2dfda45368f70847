"""What every engine is: token ids in, label log-probabilities or token ids out. Knows no rule, no text, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ramo_ray.errors import EngineError, ModelError
from ramo_ray.settings import SamplingSettings

TokenIds = Sequence[int]
NOT_FINITE = "use a wider dtype (bfloat16 or float32), or check the model's weights"


class MissingAnswersError(EngineError):
    """Some prompts of a call have no answer; what the others' is comes along, so that nothing is asked twice.

    Attributes:
        logprobs: float32 [prompts, labels], a whole row NaN where there is no answer.
        reasons: why there is none, by the prompt's index. Holds no text of a prompt.
    """

    def __init__(self, logprobs: np.ndarray, reasons: Mapping[int, str]) -> None:
        super().__init__(logprobs, reasons)
        self.logprobs, self.reasons = logprobs, dict(reasons)

    def __str__(self) -> str:
        first = sorted(self.reasons)[:5]
        places = ", ".join(map(str, first))
        return (
            f"no finite answer for {len(self.reasons)} of {len(self.logprobs)} prompts (index {places}): "
            f"{self.reasons[first[0]]}"
        )


class Usage(NamedTuple):
    """What a server has counted, and what it costs at the configured prices."""

    requests: int = 0
    """HTTP requests, those that were made again included."""
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those that the server says it had computed before."""
    completion_tokens: int = 0
    cost: float = 0.0

    def since(self, before: Usage) -> Usage:
        """What was added after `before`."""
        return Usage(*(now - then for now, then in zip(self, before, strict=True)))  # type: ignore[arg-type]


class Completion(NamedTuple):
    """What a model wrote: token ids without the one that ended it ("stop"), or as many as were allowed ("length")."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """The two doors of an engine. Both answer in the order asked, however the work was shared or reordered."""

    @property
    def applies_chat_template(self) -> bool:
        """Whether the engine puts a chat template around what it is given: then prompts are a bare message's ids."""

    @property
    def usage(self) -> Usage:
        """What a server has counted so far; nothing for a model that runs in this process."""

    @property
    def computed(self) -> int:
        """Tokens of scored prompts that went through the model since the start: fewer than asked, where they share."""

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens that the engine answers; what it writes counts too."""

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """Log-probability, over the whole vocabulary, that each label comes next: float32 [prompts, labels].

        Equals scoring the prompts one by one, within 1e-4 in float32. Raises `EngineError` for a prompt that is empty
        or too long, or a label outside the vocabulary; `MissingAnswersError` where some answers are not finite. They
        name the prompts by index.
        """

    def generate(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        """Continue each prompt. The same prompt and sampling give the same tokens, whatever else is in the call.

        Raises `EngineError` for a prompt that is empty or leaves no room for a token.
        """

    def close(self) -> None:
        """Give back the model's memory and end every process of the engine."""


def check_prompts(prompts: Sequence[TokenIds], context_length: int) -> None:
    """Raise `EngineError` for prompts that are empty or longer than the context, naming indices and lengths."""
    faults = [f"prompt {i} is empty" for i, prompt in enumerate(prompts) if len(prompt) == 0]
    faults += [f"prompt {i} has {len(p):,} tokens" for i, p in enumerate(prompts) if len(p) > context_length]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise EngineError(
            f"{'; '.join(faults[:5])}{more}; the engine answers 1 to {context_length:,} tokens. "
            "Leave these out, or raise max_length if the model's context is longer."
        )


def check_labels(labels: TokenIds, vocabulary_size: int) -> None:
    """Raise `EngineError` unless the labels are distinct token ids of the vocabulary."""
    outside = [label for label in labels if not 0 <= label < vocabulary_size]
    if outside or not labels or len(set(labels)) < len(labels):
        raise EngineError(
            f"labels {list(labels)} are not distinct token ids below {vocabulary_size:,}: "
            "take them from the tokenizer of this engine's model."
        )


def checked(logprobs: np.ndarray, reasons: Mapping[int, str] | None = None) -> np.ndarray:
    """Return finite log-probabilities [prompts, labels] as they are; raise `MissingAnswersError` for any other."""
    bad = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if bad.size:
        blank = logprobs.copy()
        blank[bad] = np.nan
        raise MissingAnswersError(blank, {place: (reasons or {}).get(place, NOT_FINITE) for place in bad.tolist()})
    return logprobs


def prompt_seed(prompt: TokenIds, sampling: SamplingSettings) -> int:
    """Seed of one prompt's random draws, 63 bits: prompts draw apart from each other, and the same in any batch."""
    text = sampling.model_dump_json() + ":" + ",".join(map(str, prompt))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def context_within(config: Any, wanted: int | None, folder: Path) -> int:
    """Longest sequence in tokens: the model's context, by its transformers config, or less where less is wanted."""
    own: int | None = getattr(config, "max_position_embeddings", None)
    lengths = [length for length in (own, wanted) if length is not None]
    if not lengths:
        raise ModelError(f"{folder}: config.json does not say how long a context the model has; set max_length.")
    return min(lengths)


def end_ids(*stated: int | list[int] | None) -> frozenset[int]:
    """Tokens that end a text: the first statement that says any (a generation config's, then a model config's)."""
    ends = next((value for value in stated if value is not None), [])
    return frozenset([ends] if isinstance(ends, int) else ends)
