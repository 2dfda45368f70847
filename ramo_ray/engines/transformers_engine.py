"""A causal language model in transformers: float32 on CPU, half precision on a GPU, shared beginnings computed once.

Prompts are grouped by `trunks`: a group's trunk goes through the model once and leaves its keys and values in a
cache; the tails ride on it, many in one forward pass, under a mask that lets each see the trunk and itself only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ramo_ray.engines import trunks
from ramo_ray.engines.base import (
    Completion,
    TokenIds,
    check_labels,
    check_prompts,
    checked,
    context_within,
    end_ids,
    prompt_seed,
)
from ramo_ray.engines.sampling import choose_tokens
from ramo_ray.errors import EngineError, ModelError
from ramo_ray.settings import EngineSettings, SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor

# Tail tokens a pass. A dense mask costs time in its square, a pass costs time of its own; GPUs want more work at once.
CPU_BUDGET, GPU_BUDGET = 512, 4096
ROWS = 32
"""Prompts that are continued together."""


class TransformersEngine:
    """An `Engine` on `AutoModelForCausalLM`, for any model whose layers all attend to the whole prompt.

    A model with other layers (sliding windows, ALiBi, recurrent states) scores its prompts one by one: a mask over
    packed tails would not say the same to it.
    """

    def __init__(self, settings: EngineSettings, model_path: Path) -> None:
        import torch

        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load(model_path, getattr(torch, settings.dtype)).to(self.device)
        config = self.model.config.get_text_config()
        self.context_length = context_within(config, settings.max_length, model_path)
        self.vocabulary_size: int = config.vocab_size
        self.ends = end_ids(self.model.generation_config.eos_token_id, config.eos_token_id)
        self.shares = _attends_to_all(config)
        self.budget = CPU_BUDGET if self.device.type == "cpu" else GPU_BUDGET

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """See `Engine.label_logprobs`."""
        import torch

        check_prompts(prompts, self.context_length)
        check_labels(labels, self.vocabulary_size)
        result = np.full((len(prompts), len(labels)), np.nan, dtype=np.float32)
        places: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            places.setdefault(tuple(prompt), []).append(index)
        wanted = torch.tensor(list(labels), device=self.device)
        with torch.inference_mode():
            for members, logits in self._next_logits(list(places)):
                logprobs = logits.float().log_softmax(dim=-1).index_select(-1, wanted).cpu().numpy()
                for member, row in zip(members, logprobs, strict=True):
                    result[places[member]] = row
        return checked(result)

    def _next_logits(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
        """Yield prompts with their next-token logits [prompts, V], each prompt once, in the order of the work."""
        if not self.shares:
            yield from (([prompt], self._plain(prompt)) for prompt in prompts)
            return
        for group in trunks.plan(prompts):
            cache = self._cache(prompts[group.members[0]][: group.trunk]) if group.trunk else None
            for packed in trunks.pack(prompts, group, self.budget):
                members = [prompts[i] for i in packed.members]
                whole = cache is None and len(members) == 1
                yield members, self._plain(members[0]) if whole else self._packed(packed, cache)

    def _plain(self, prompt: TokenIds) -> Tensor:
        logits: Tensor = self.model(input_ids=self._row(prompt), use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]

    def _cache(self, trunk: TokenIds) -> Any:
        return self.model(input_ids=self._row(trunk), use_cache=True, logits_to_keep=1).past_key_values

    def _packed(self, packed: trunks.Packed, cache: Any) -> Tensor:
        import torch

        logits: Tensor = self.model(
            input_ids=self._row(packed.token_ids),
            position_ids=self._row(packed.positions),
            attention_mask=torch.from_numpy(packed.visible).to(self.device)[None, None],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=torch.from_numpy(packed.last).to(self.device),
        ).logits
        if cache is not None:
            cache.crop(-len(packed.token_ids))
        return logits[0]

    def _row(self, ids: TokenIds | np.ndarray) -> Tensor:
        import torch

        return torch.as_tensor(ids, dtype=torch.long, device=self.device)[None]

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

        del self.model
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


def _attends_to_all(config: Any) -> bool:
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    takes_a_mask = config._attn_implementation == "sdpa" and not getattr(config, "alibi", False)
    return layers == {"full_attention"} and not any(windows) and takes_a_mask
