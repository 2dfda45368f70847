"""Choose next tokens from logits by temperature and top-p, with random numbers that the caller drew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramo_ray.settings import SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor

SORTED_AT_FIRST = 1024


def choose_tokens(logits: Tensor, sampling: SamplingSettings, draws: Tensor) -> Tensor:
    """Token ids [n] from logits [n, V] and uniform draws [n] in [0, 1). Temperature 0 takes the most likely token.

    Top-p keeps the fewest most likely tokens that hold at least `top_p` of the probability (Holtzman et al. 2020).
    A draw picks by inverting the cumulative distribution of what is kept, so equal draws give equal tokens and no
    global random state is touched.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, tokens = _most_likely((logits.float() / sampling.temperature).softmax(dim=-1), sampling.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    kept = (cumulative - probabilities < sampling.top_p).sum(dim=-1, keepdim=True)
    mass = cumulative.gather(1, kept - 1)
    target = draws.to(mass)[:, None] * mass
    place = (cumulative <= target).sum(dim=-1, keepdim=True).minimum(kept - 1)
    return tokens.gather(1, place)[:, 0]


def _most_likely(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The most likely tokens in order, enough of them to hold `mass` in every row: probabilities and ids [n, k]."""
    # Sorting a whole vocabulary takes longer than a small model's forward pass, and is seldom needed.
    few = probabilities.topk(min(SORTED_AT_FIRST, probabilities.shape[-1]))
    if bool((few.values.sum(dim=-1) >= mass).all()):
        return few.values, few.indices
    everything = probabilities.sort(dim=-1, descending=True)
    return everything.values, everything.indices
