"""Attention of one pass over a prefix tree: each node sees its ancestors and itself, and nothing else.

On a CPU, neighbouring nodes attend together to the trunk that all of them see, which needs no mask, and block by
block to the rest of their paths; the softmax's normalisers put both together exactly. So the work grows with what is
seen and not with the square of the pass. A GPU takes larger blocks, each with the whole of its path. The keys and
values that later passes see are held here, and no others.
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
CPU_BLOCK, GPU_BLOCK = 64, 512
"""Nodes a block: a small one wastes little on what a node does not see, a large one is quicker for what it does."""
CPU_SLACK = 64
"""Nodes of its path that a node may have beside its neighbours' trunk: a shorter trunk saves less, for more nodes."""

NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "sliding_window", "head_mask")
"""What some models ask of an attention function beyond a softmax over all that is visible."""

KeysValues = dict[int, "tuple[Tensor, Tensor]"]


class _Block(NamedTuple):
    queries: slice
    keys: list[slice]
    mask: Tensor


class _Stretch(NamedTuple):
    queries: slice
    trunk: list[slice]
    blocks: list[_Block]


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
        self.held, self.handed_on = held, KeysValues()
        self.kept = _runs(one.handed_on)
        if place.type == "cpu":
            self.cut = list(radix.stretches(tree, one, block=CPU_BLOCK, slack=CPU_SLACK))
        else:
            self.cut = [radix.blocks(tree, one, GPU_BLOCK)]
        self.kind, self.place = kind, place
        self.stretches: dict[int, list[_Stretch]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of queries [1, H, T, D] over the held and the new keys and values [1, h, T, D]: [1, T, H, D]."""
        import torch

        if layer in self.held:
            key = torch.cat([self.held[layer][0], key], dim=2)
            value = torch.cat([self.held[layer][1], value], dim=2)
        # Copies where they would be views, which hold on to all keys of the pass.
        self.handed_on[layer] = (_take(key, self.kept).clone(), _take(value, self.kept).clone())
        seen = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        group = query.shape[1] // key.shape[1]
        if group not in self.stretches:
            # By the first layer, for all that are shaped like it.
            self.stretches[group] = [_on_device(stretch, group, self.kind, self.place) for stretch in self.cut]
        for stretch in self.stretches[group]:
            _attend(stretch, query, key, value, scale, seen)
        return seen


def _on_device(stretch: radix.Stretch, group: int, kind: dtype, place: device) -> _Stretch:
    blocks = [
        _Block(block.queries, _runs(block.keys), _mask(block.visible, group, kind).to(place))
        for block in stretch.blocks
    ]
    return _Stretch(stretch.queries, _runs(stretch.trunk), blocks)


def _mask(visible: np.ndarray, group: int, kind: dtype) -> Tensor:
    """What is added to the scores, for each of the heads that share keys."""
    import torch

    # Scaled dot product attention would turn booleans into this once a layer.
    mask = torch.zeros(visible.shape, dtype=kind).masked_fill_(torch.from_numpy(~visible), float("-inf"))
    return mask.repeat(group, 1)


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


def _attend(stretch: _Stretch, query: Tensor, key: Tensor, value: Tensor, scale: float | None, seen: Tensor) -> None:
    """Write a stretch's attention into `seen` [1, T, H, D]."""
    trunk = None
    if stretch.trunk:
        trunk = _flash(
            query[:, :, stretch.queries], _take(key, stretch.trunk), _take(value, stretch.trunk), None, scale
        )
    for block in stretch.blocks:
        keys, values = _take(key, block.keys), _take(value, block.keys)
        if trunk is None:
            own = _masked(query[:, :, block.queries], keys, values, block.mask, scale)
        else:
            here = slice(block.queries.start - stretch.queries.start, block.queries.stop - stretch.queries.start)
            below = _flash(query[:, :, block.queries], keys, values, block.mask, scale)
            own = _together((trunk[0][:, :, :, here], trunk[1][:, :, :, here]), below).flatten(1, 2)
        seen[:, block.queries] = own.transpose(1, 2)


def _rows(query: Tensor, heads: int) -> Tensor:
    """Queries [1, H, T, D] as rows [1, h, H/h · T, D], so that no key is copied for the heads that share it."""
    return query.reshape(1, heads, -1, query.shape[3])


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention [1, H, T, D] under a mask."""
    from torch.nn.functional import scaled_dot_product_attention

    seen: Tensor = scaled_dot_product_attention(_rows(query, key.shape[1]), key, value, attn_mask=mask, scale=scale)
    return seen.reshape(*query.shape[:3], value.shape[-1])


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [1, h, H/h, T, D], and the logarithm of its normaliser [1, h, H/h, T, 1]."""
    import torch

    seen, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _rows(query, key.shape[1]), key, value, attn_mask=mask, scale=scale
    )
    apart = (1, key.shape[1], query.shape[1] // key.shape[1], query.shape[2])
    return seen.reshape(*apart, -1), normaliser.reshape(*apart, 1)


def _together(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over two sets of keys, from the attentions over each: a mean by the normalisers' shares."""
    import torch

    return torch.lerp(other[0], one[0], torch.sigmoid(one[1] - other[1]).to(one[0].dtype))


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
