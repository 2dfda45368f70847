"""Attention of one pass over a prefix tree: each node sees its ancestors and itself, and nothing else.

On a CPU the nodes attend block by block, each block over the path to its first node and itself, so the work grows
with what is seen and not with the square of the pass. A GPU takes the whole pass at once. The keys and values that
later passes see are held here, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ramo_ray.engines import radix
from ramo_ray.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

NAME = "ramo_ray_tree"
CPU_BLOCK = 64
"""Nodes a block: a small one wastes little on what a node does not see, a large one is quicker for what it does."""

NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "sliding_window", "head_mask")
"""What some models ask of an attention function beyond a softmax over all that is visible."""

KeysValues = dict[int, "tuple[Tensor, Tensor]"]


class _Block(NamedTuple):
    queries: slice
    keys: list[slice]
    mask: Tensor


class PassState:
    """What the attention layers of one forward pass share. Once the pass is done, `handed_on` is what the next holds.

    Args:
        tree: the prefix tree.
        one: the pass.
        held: keys and values [1, heads, ancestors, width] of the pass's ancestors, by layer.
        kind: the numbers that attention is computed in.
        place: where the model is.
    """

    def __init__(self, tree: radix.Tree, one: radix.Pass, held: KeysValues, kind: dtype, place: device) -> None:
        import torch

        size = CPU_BLOCK if place.type == "cpu" else one.stop - one.start
        self.held, self.handed_on = held, KeysValues()
        self.kept = _runs(one.handed_on)
        self.blocks = [
            _Block(block.queries, _runs(block.keys), _mask(torch.from_numpy(block.visible), kind).to(place))
            for block in radix.blocks(tree, one, size)
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of queries [1, H, T, D] over the held and the new keys and values [1, h, T, D]: [1, T, H, D]."""
        import torch

        if layer in self.held:
            key = torch.cat([self.held[layer][0], key], dim=2)
            value = torch.cat([self.held[layer][1], value], dim=2)
        # Copies where they would be views, which hold on to all keys of the pass.
        self.handed_on[layer] = (_take(key, self.kept).clone(), _take(value, self.kept).clone())
        seen = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for block in self.blocks:
            own = _attend(
                query[:, :, block.queries], _take(key, block.keys), _take(value, block.keys), block.mask, scale
            )
            seen[:, block.queries] = own
        return seen


def _mask(visible: Tensor, kind: dtype) -> Tensor:
    # Scaled dot product attention would turn booleans into this once a layer.
    return visible.new_zeros(visible.shape, dtype=kind).masked_fill_(~visible, float("-inf"))


def _runs(places: np.ndarray) -> list[slice]:
    """Ascending places as slices, each as long as it can be."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(places, cuts) if len(run)]


def _take(what: Tensor, runs: Sequence[slice]) -> Tensor:
    """Some of [1, h, K, D] by its third dimension. Paths are few long runs, which copy faster than an index gathers."""
    import torch

    if len(runs) == 1:
        return what[:, :, runs[0]]
    return torch.cat([what[:, :, run] for run in runs], dim=2) if runs else what[:, :, :0]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """[1, T, H, D]. Heads that share keys become rows of one attention, so that no key is copied for them."""
    from torch.nn.functional import scaled_dot_product_attention

    _, heads, length, width = query.shape
    group = heads // key.shape[1]
    rows = query.reshape(1, key.shape[1], group * length, width)
    masks = mask.expand(group, *mask.shape).reshape(1, 1, group * length, mask.shape[-1])
    seen: Tensor = scaled_dot_product_attention(rows, key, value, attn_mask=masks, scale=scale)
    return seen.view(1, heads, length, value.shape[-1]).transpose(1, 2)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the pass knows who sees whom
    *,
    tree_pass: PassState,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; `tree_pass` travels through the model's keywords."""
    if beyond := [name for name in NOT_COMPUTED if more.get(name) is not None]:
        raise EngineError(
            f"{type(module).__name__} asks attention for {', '.join(beyond)}: its prompts cannot be packed."
        )
    return tree_pass.attend(module.layer_idx, query, key, value, scaling), None


def register() -> None:
    """Make this attention known to transformers, under `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
