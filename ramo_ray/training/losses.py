"""The two losses and what counts as a right answer under each, as sums over examples: tensors in, scalars out.

Sums, because a global batch is computed in parts: with weights that add up to 1 over all parts, the parts' losses
add up to the mean over the batch, however it was divided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Answers(NamedTuple):
    """Right answers of all answers; accuracy is their ratio over the whole batch."""

    right: Tensor
    total: Tensor


def bradley_terry_loss(reward_chosen: Tensor, reward_rejected: Tensor, weights: Tensor) -> Tensor:
    """Σ w · −log σ(φ(v_+) − φ(v_−)) over pairs, all [n] (equations 6 and 7)."""
    from torch.nn.functional import logsigmoid

    return -(weights * logsigmoid(reward_chosen.float() - reward_rejected.float())).sum()


def multi_label_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ w · binary cross-entropy, its mean over the R rules; logits and targets [n, R], weights [n]."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    each = binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (weights * each.mean(dim=1)).sum()


def pairs_in_order(reward_chosen: Tensor, reward_rejected: Tensor, weights: Tensor) -> Answers:
    """Pairs whose chosen response has the higher reward (a tie is wrong); those of weight 0 are not counted."""
    counted = weights > 0
    return Answers(((reward_chosen > reward_rejected) & counted).sum(), counted.sum())


def rules_recalled(logits: Tensor, targets: Tensor, weights: Tensor, *, r: int) -> Answers:
    """Critical rules among the r highest outputs of their row, of all critical rules: recall at r, micro-averaged."""
    top = logits.topk(min(r, logits.shape[1]), dim=1).indices
    counted = (weights > 0).unsqueeze(1)
    return Answers((targets.gather(1, top).bool() & counted).sum(), (targets.bool() & counted).sum())
