"""A causal language model in transformers: float32 on CPU, half precision on a GPU, shared beginnings computed once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ramo_ray.engines.base import (
    Completion,
    TokenIds,
    Usage,
    check_labels,
    check_prompts,
    checked,
    context_within,
    end_ids,
    prompt_seed,
)
from ramo_ray.engines.cpu_linear import pack_linears
from ramo_ray.engines.sampling import choose_tokens
from ramo_ray.engines.tree_scorer import TreeScorer
from ramo_ray.errors import EngineError, ModelError
from ramo_ray.settings import EngineSettings, SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 32
"""Prompts that are continued together."""


class TransformersEngine:
    """An `Engine` on `AutoModelForCausalLM`.

    Prompts are scored as one prefix tree (see `TreeScorer`), by any model whose layers all attend to the whole prompt
    and whose attention can be replaced. A model with other layers (sliding windows, ALiBi, recurrent states) scores
    its prompts one by one.
    """

    applies_chat_template = False
    usage = Usage()

    def __init__(self, settings: EngineSettings, model_path: Path) -> None:
        import torch

        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load(model_path, getattr(torch, settings.dtype)).to(self.device)
        config = self.model.config.get_text_config()
        self.context_length = context_within(config, settings.max_length, model_path)
        self.vocabulary_size: int = config.vocab_size
        self.ends = end_ids(self.model.generation_config.eos_token_id, config.eos_token_id)
        if self.device.type == "cpu":
            pack_linears(self.model)
        self.scorer = TreeScorer(self.model)

    @property
    def computed(self) -> int:
        """See `Engine.computed`."""
        return self.scorer.computed

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """See `Engine.label_logprobs`."""
        check_prompts(prompts, self.context_length)
        check_labels(labels, self.vocabulary_size)
        if not prompts:
            return np.empty((0, len(labels)), dtype=np.float32)
        return checked(self.scorer.label_logprobs(prompts, labels))

    def generate(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        """See `Engine.generate`."""
        import torch

        check_prompts(prompts, self.context_length - 1)
        result: dict[int, Completion] = {}
        # Neighbours in length waste the least padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with torch.inference_mode():
            for start in range(0, len(order), ROWS):
                chunk = order[start : start + ROWS]
                result.update(zip(chunk, self._continue([prompts[i] for i in chunk], sampling), strict=True))
        return [result[i] for i in range(len(prompts))]

    def _continue(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        import torch

        draws = [np.random.default_rng(prompt_seed(p, sampling)).random(sampling.max_tokens) for p in prompts]
        limits = [min(sampling.max_tokens, self.context_length - len(p)) for p in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        stopped: set[int] = set()
        rows = list(range(len(prompts)))
        ids, mask = self._left_padded(prompts)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        cache = None
        while rows:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, logits = output.past_key_values, output.logits[:, -1]
            if not torch.isfinite(logits).all():
                raise EngineError("the model's logits are not finite. Use a wider dtype, or check the model's weights.")
            drawn = torch.tensor([draws[row][len(written[row])] for row in rows], device=self.device)
            chosen = choose_tokens(logits, sampling, drawn)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if token in self.ends:
                    stopped.add(row)
                else:
                    written[row].append(token)
            going = [i for i, row in enumerate(rows) if row not in stopped and len(written[row]) < limits[row]]
            if len(going) < len(rows):
                kept = torch.tensor(going, dtype=torch.long, device=self.device)
                cache.batch_select_indices(kept)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
                rows = [rows[i] for i in going]
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        return [Completion(ids, "stop" if i in stopped else "length") for i, ids in enumerate(written)]

    def _left_padded(self, prompts: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
        import torch

        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def close(self) -> None:
        """See `Engine.close`."""
        import torch

        del self.model, self.scorer
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _load(path: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: not loadable as a causal language model with safetensors weights: {reason}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(f"{path}: weights are missing ({', '.join(missing[:3])}); give a whole causal language model.")
    return model.eval()
