"""How far a policy has gone from the one it began with: the KL divergence along what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ramo_ray.core.records import Prompt
from ramo_ray.errors import EngineError, ModelError
from ramo_ray.models.classifier import quiet
from ramo_ray.models.templates import encode_chat, encode_text, load_tokenizer, same_tokens
from ramo_ray.settings import DType


class Answered(NamedTuple):
    """Token ids of a prompt in the policy's chat template, and of the answer, without the end of turn."""

    prompt: list[int]
    answer: list[int]


def check_same_tokens(policy: Path, base: Path) -> None:
    """Raise `ModelError` unless both read and write the same tokens: their probabilities cannot be compared else."""
    if not same_tokens(load_tokenizer(policy), load_tokenizer(base)):
        raise ModelError(
            f"{policy}: its tokenizer or chat template is not that of {base}, so it is no later state of that policy. "
            "Give the policy that it began with."
        )


class PolicyPair:
    """A policy and the one it began with, on a GPU where there is one.

    `threads` sets torch's threads in this process on CPU; empty leaves them as they are.
    """

    def __init__(self, policy: Path, base: Path, *, dtype: DType = "float32", threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        check_same_tokens(policy, base)
        self.path = policy
        self.tokenizer = load_tokenizer(policy)
        self.policy, self.base = (_load(path, dtype) for path in (policy, base))
        self.context_length = min(int(m.config.max_position_embeddings) for m in (self.policy, self.base))

    def read(self, prompt: Prompt, response: str) -> Answered:
        """Token ids of a conversation. Raises `RolesError` where the chat template refuses its roles."""
        return Answered(
            encode_chat(self.tokenizer, prompt, add_generation_prompt=True), encode_text(self.tokenizer, response)
        )

    def divergence(self, answered: Answered) -> float | None:
        """KL(policy ‖ base) along an answer's text, in nats: at each token over the whole vocabulary, then summed.

        At temperature 1, whatever the answer was sampled at, and without the end of the turn: a text does not tell
        whether the policy ended it. None for a conversation that does not fit into the context.

        Raises:
            EngineError: a model's output is not finite.
        """
        import torch

        ids, written = [*answered.prompt, *answered.answer], len(answered.answer)
        if len(ids) > self.context_length:
            return None
        if not written:
            return 0.0
        with torch.inference_mode():
            ours, theirs = (self._log_probabilities(model, ids, written) for model in (self.policy, self.base))
            total = float((ours.exp() * (ours - theirs)).sum())
        if not np.isfinite(total):
            raise EngineError(f"{self.path}: a policy's output is not finite. Load it in a wider dtype.")
        # Rounding takes what is nothing a little below it.
        return max(0.0, total)

    @staticmethod
    def _log_probabilities(model: Any, ids: Sequence[int], written: int) -> Any:
        """[written, vocabulary], of what comes at each of the last `written` places."""
        import torch

        # The head, whose output is the largest thing here, need not read the prompt.
        output = model(torch.tensor([ids], device=model.device), logits_to_keep=written + 1, use_cache=False)
        return output.logits[0, -written - 1 : -1].float().log_softmax(-1)


def _load(path: Path, dtype: DType) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: no policy can be loaded ({' '.join(str(error).split())[:200]}).") from None
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
