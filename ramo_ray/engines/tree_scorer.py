"""What a transformers model says at the end of each of many prompts, each distinct prefix computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ramo_ray.engines import radix, tree_attention
from ramo_ray.engines.base import TokenIds
from ramo_ray.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[["Tensor"], np.ndarray]
"""From the model's numbers at some tokens, [n, width], to float32 [n, ...]."""
logger = logging.getLogger(__name__)

# Tokens a pass. Each pass reads all weights and has a cost of its own; GPUs want more work at once.
CPU_BUDGET, GPU_BUDGET = 2048, 8192
MOST_LOGITS = 2**26
"""Logits of one pass: 256 MiB in float32."""
VARYING_ROTATIONS = ("dynamic", "longrope")
"""Rotary positions that depend on the longest position in the call."""
WHOLE_VIEW = {"full_attention"}
AGREEMENT, HALF_AGREEMENT = 5e-4, 0.05
"""What log-probabilities may be off by at the start, as a share of their spread over the words: logits of untrained
models lie close together. Rounding is some 1e-5 of it; a wrong neighbour, or the right one in a wrong place, at least
3e-3."""
PROBED_WORDS = 64
LIMITS = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping")


class TreeScorer:
    """Walks a model over prefix trees.

    Attributes:
        shares: whether the model can: every layer attends to the whole prompt, a token's place comes from its position
            id, and a small tree gave what its prompts give one by one. Where it cannot, prompts are scored one by one.
        budget: tokens a pass; halved for good when a pass does not fit into memory.
        most_asked: prompts that may end in one pass, as each of them has a logit for every word.
        computed: tokens that went through the model, and `passes` how often it ran, since the start.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        config = model.config.get_text_config()
        self.vocabulary_size: int = config.vocab_size
        self.budget = CPU_BUDGET if self.device.type == "cpu" else GPU_BUDGET
        self.most_asked = max(1, MOST_LOGITS // self.width)
        self.computed = self.passes = 0
        self.plain_attention: str = config._attn_implementation
        tree_attention.register()
        self.shares = _can_share(model, config) and self._agrees()

    @property
    def width(self) -> int:
        """Numbers that the model gives at a token."""
        return self.vocabulary_size

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """Log-probabilities over the whole vocabulary, float32 [prompts, labels]; see `Engine.label_logprobs`."""
        return self.outputs(prompts, partial(_logprobs, labels=labels))

    def outputs(self, prompts: Sequence[TokenIds], read: Read) -> np.ndarray:
        """What `read` makes of the model's numbers at each prompt's last token: float32 [prompts, ...]."""
        import torch

        with torch.inference_mode():
            return self._shared(prompts, read) if self.shares else self._one_by_one(prompts, read)

    def _probe(self) -> Read:
        """What is compared at the start."""
        words = np.unique(np.linspace(0, self.vocabulary_size - 1, PROBED_WORDS, dtype=np.int64)).tolist()
        return partial(_logprobs, labels=words)

    def _shared(self, prompts: Sequence[TokenIds], read: Read) -> np.ndarray:
        tree = radix.build(prompts)
        rows: list[np.ndarray] = []
        held = tree_attention.KeysValues()
        start = 0
        try:
            self.model.set_attn_implementation(tree_attention.NAME)
            while start < len(tree):
                one, logits, held = self._fitting_pass(tree, start, held)
                rows.append(read(logits))
                start = one.stop
        finally:
            self.model.set_attn_implementation(self.plain_attention)
        at_ends: np.ndarray = np.concatenate(rows)
        return at_ends[np.searchsorted(tree.ends, tree.last)]

    def _fitting_pass(
        self, tree: radix.Tree, start: int, held: tree_attention.KeysValues
    ) -> tuple[radix.Pass, Tensor, tree_attention.KeysValues]:
        while True:
            one = radix.next_pass(tree, start, size=self.budget, most_asked=self.most_asked)
            try:
                return one, *self._run(tree, one, held)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if one.stop - one.start == 1:
                    raise EngineError(
                        f"a pass of one token behind {len(one.ancestors):,} does not fit into memory: take a smaller "
                        "model, a narrower dtype, a lower max_length, or fewer actors on this machine."
                    ) from error
            # Here the failed pass's tensors are free again.
            self._make_room(one.stop - one.start)

    def _make_room(self, failed: int) -> None:
        import torch

        self.budget = failed // 2
        logger.warning("a pass of %d tokens does not fit into memory; going on with %d a pass", failed, self.budget)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(
        self, tree: radix.Tree, one: radix.Pass, held: tree_attention.KeysValues
    ) -> tuple[Tensor, tree_attention.KeysValues]:
        import torch

        state = tree_attention.PassState(tree, one, held, self.model.dtype, self.device)
        logits: Tensor = self.model(
            input_ids=self._row(tree.token_ids[one.start : one.stop]),
            position_ids=self._row(tree.positions[one.start : one.stop]),
            use_cache=False,
            logits_to_keep=torch.from_numpy(one.asked).to(self.device),
            tree_pass=state,
        ).logits
        self.computed += one.stop - one.start
        self.passes += 1
        return logits[0], state.handed_on

    def _one_by_one(self, prompts: Sequence[TokenIds], read: Read) -> np.ndarray:
        known: dict[tuple[int, ...], np.ndarray] = {}
        for prompt in {tuple(prompt): None for prompt in prompts}:
            row = self._row(np.asarray(prompt))
            known[prompt] = read(self.model(input_ids=row, use_cache=False, logits_to_keep=1).logits[0])
            self.computed += len(prompt)
            self.passes += 1
        return np.concatenate([known[tuple(prompt)] for prompt in prompts])

    def _row(self, ids: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(ids.astype(np.int64)).to(self.device)[None]

    def _agrees(self) -> bool:
        """Whether a tree in several passes gives what its prompts give alone."""
        import torch

        # Longer than a trunk has to be to be attended to apart.
        length = 2 * tree_attention.CPU_SLACK
        if context := getattr(self.model.config.get_text_config(), "max_position_embeddings", None):
            length = min(length, context - 3)
        trunk = np.random.default_rng(0).integers(self.vocabulary_size, size=length).tolist()
        prompts = [[*trunk, 0, 1, 2], [*trunk, 0, 2], [*trunk, 1], [0, 2]]
        read = self._probe()
        whole, self.budget = self.budget, len(trunk) - 3
        try:
            with torch.inference_mode():
                expected = self._one_by_one(prompts, read)
                apart = float(np.abs(self._shared(prompts, read) - expected).max() / expected.std())
        except (EngineError, TypeError) as error:
            logger.warning("%s: %s Scoring prompts one by one.", type(self.model).__name__, error)
            return False
        finally:
            self.budget, self.computed, self.passes = whole, 0, 0
        # What is not finite is reported for the prompts that it happens to.
        agrees = not apart > (AGREEMENT if self.model.dtype == torch.float32 else HALF_AGREEMENT)
        if not agrees:
            logger.warning(
                "%s: packed prompts differ by %.2g of the outputs' spread; scoring them one by one",
                type(self.model).__name__,
                apart,
            )
        return agrees


def _logprobs(logits: Tensor, labels: TokenIds) -> np.ndarray:
    """The labels' log-probabilities, float32 [n, labels], of logits [n, V]."""
    logits = logits.float()
    wanted = logits[:, list(labels)] - logits.logsumexp(dim=-1, keepdim=True)
    found: np.ndarray = wanted.cpu().numpy()
    return found


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    # The CPU's allocator has no error class of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _can_share(model: Any, config: Any) -> bool:
    rotation = getattr(config, "rope_parameters", None) or {}
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or WHOLE_VIEW) == WHOLE_VIEW
        and not any(getattr(config, name, None) for name in LIMITS)
        and not getattr(config, "alibi", False)
        and rotation.get("rope_type") not in VARYING_ROTATIONS
    )
