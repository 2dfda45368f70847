import pytest

pytestmark = pytest.mark.slow


def test_packed_layers_give_what_plain_ones_give() -> None:
    import torch

    from ramo_ray.engines.cpu_linear import pack_linears

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 200), torch.nn.Sequential(torch.nn.Linear(200, 33, bias=False)))
    inputs = [torch.randn(2, rows, 96) for rows in (1, 7, 512, 700)]
    with torch.inference_mode():
        before = [model(x) for x in inputs]
        pack_linears(model)
        assert not [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        for x, expected in zip(inputs, before, strict=True):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_tied_weights_keep_their_second_use_and_other_numbers_stay() -> None:
    import torch

    from ramo_ray.engines.cpu_linear import pack_linears

    embedding, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50, bias=False)
    head.weight = embedding.weight
    half = torch.nn.Linear(16, 16, dtype=torch.bfloat16)
    model = torch.nn.ModuleList([embedding, head, half])
    pack_linears(model)

    with torch.inference_mode():
        rows = embedding(torch.tensor([3, 4]))
        torch.testing.assert_close(model[1](rows), rows @ embedding.weight.T)
    assert model[2] is half


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_layer_gives_what_the_plain_one_gives(activation: str, bias: bool) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    from ramo_ray.engines.cpu_linear import pack_linears

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=96, intermediate_size=200, hidden_act=activation, mlp_bias=bias)
    model = torch.nn.Sequential(LlamaMLP(config), LlamaMLP(config))
    x = 3 * torch.randn(2, 70, 96)
    with torch.inference_mode():
        before = model(x)
        pack_linears(model)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    # Only the sigmoid-weighted unit rides on the product; another activation is left to its own module.
    assert isinstance(model[0], LlamaMLP) == (activation != "silu")


def test_layers_that_do_something_else_keep_their_own_way() -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    from ramo_ray.engines.cpu_linear import pack_linears

    class Clamped(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-7, 7))

    class Weighted(LlamaMLP):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return weight * super().forward(x)

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=96, intermediate_size=200)
    model = torch.nn.ModuleList([Clamped(config), Weighted(config)])
    x, weight = 50 * torch.randn(2, 70, 96), torch.tensor(0.5)
    with torch.inference_mode():
        before = [model[0](x), model[1](x, weight)]
        pack_linears(model)
        torch.testing.assert_close([model[0](x), model[1](x, weight)], before, atol=1e-3, rtol=1e-4)
