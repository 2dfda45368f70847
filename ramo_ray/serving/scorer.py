"""Rewards of token sequences, each distinct beginning computed once: the answers to one prompt share it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ramo_ray.engines.cpu_linear import pack_linears
from ramo_ray.engines.tree_scorer import Read, TreeScorer
from ramo_ray.errors import ModelError
from ramo_ray.models.reward import load_reward_model
from ramo_ray.settings import DType

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "score"
"""What transformers calls the linear head of a sequence classifier on a decoder."""


class _AtEnds:
    """A reward model that computes its head only where it is asked, as language models in transformers do."""

    def __init__(self, model: Any) -> None:
        self.body, self.head, self.config = model.base_model, getattr(model, HEAD), model.config
        self.device, self.dtype = model.device, model.dtype
        self._supports_attention_backend = getattr(model, "_supports_attention_backend", False)
        self.set_attn_implementation = model.set_attn_implementation

    def __call__(self, *, logits_to_keep: int | Tensor, **inputs: Any) -> SimpleNamespace:
        hidden = self.body(**inputs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=self.head(hidden[:, kept]))


def _numbers(outputs: Tensor) -> np.ndarray:
    found: np.ndarray = outputs.float().cpu().numpy()
    return found


class _TreeOfRewards(TreeScorer):
    @property
    def width(self) -> int:
        return 1

    def _probe(self) -> Read:
        return _numbers


class RewardScorer:
    """A reward model in this process, on a GPU where there is one.

    A row's reward is the same within 1e-4 in float32 whatever it is computed with. Where a model cannot share
    beginnings, rows are computed one by one. `threads` sets torch's threads on CPU; empty leaves them as they are.

    Attributes:
        context_length: longest row in tokens.
        vocabulary: token ids that the model knows, from 0.
        computed: tokens that went through the model since the start.

    Raises:
        ModelError: no reward model, or one whose head is not linear.
    """

    def __init__(self, path: Path, *, dtype: DType = "float32", threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        model = load_reward_model(path, dtype=dtype).eval()
        if not isinstance(getattr(model, HEAD, None), torch.nn.Linear):
            raise ModelError(f"{path}: {type(model).__name__} has no linear head `{HEAD}`; export a decoder's.")
        self.path = path
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        if model.device.type == "cpu":
            pack_linears(model.base_model)
        self.context_length = int(model.config.max_position_embeddings)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.tree = _TreeOfRewards(_AtEnds(model))
        self.lock = threading.Lock()

    @property
    def computed(self) -> int:
        return self.tree.computed

    def score(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Rewards [n] at each row's last token; NaN or infinite where the model's output is.

        Raises:
            ModelError: a row is empty or too long.
        """
        for place, row in enumerate(rows):
            if not 1 <= len(row) <= self.context_length:
                raise ModelError(
                    f"{self.path}: row {place} has {len(row)} tokens; the model takes 1 to {self.context_length}."
                )
        if not rows:
            return np.empty(0, dtype=np.float32)
        with self.lock:
            # The attention is swapped while it runs.
            rewards: NDArray[np.float32] = self.tree.outputs(rows, _numbers)[:, 0]
        return rewards
