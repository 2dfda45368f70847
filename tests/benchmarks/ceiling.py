"""How many tokens a second a machine could reach on a model if its matrix products were all there is to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TOKENS, GPU_TOKENS = (256, 1024), (1024, 8192)
REPEATS = 2


def ceiling_tokens(model: Any) -> float:
    """Tokens/s of the products of all layers, one after the other: the best of two libraries and several sizes.

    The language-model head is left out, as it works on few tokens; so are attention and everything elementwise.
    """
    import torch

    weights = [m.weight.detach() for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    counts = TOKENS if weights[0].device.type == "cpu" else GPU_TOKENS
    with torch.inference_mode():
        best = max(_tokens_a_second(weights, count, torch.nn.functional.linear) for count in counts)
        if weights[0].device.type == "cpu" and weights[0].dtype == torch.float32:
            packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 512) for weight in weights]
            best = max(best, *(_tokens_a_second(packed, count, _packed_product, weights) for count in TOKENS))
    return best


def _packed_product(x: Any, weight: Any) -> Any:
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _tokens_a_second(
    weights: list[Any], count: int, product: Callable[[Any, Any], Any], plain: list[Any] | None = None
) -> float:
    import torch

    widths = [weight.shape[1] for weight in plain or weights]
    kind = {"dtype": weights[0].dtype, "device": weights[0].device}
    inputs = {width: torch.randn(count, width, **kind) for width in set(widths)}
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for width, weight in zip(widths, weights, strict=True):
            product(inputs[width], weight)
        if kind["device"].type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return count / min(seconds[1:])
