import numpy as np
import pytest

from ramo_ray.engines.sampling import SORTED_AT_FIRST, choose_tokens
from ramo_ray.settings import SamplingSettings

torch = pytest.importorskip("torch")


def by_hand(logits: np.ndarray, temperature: float, top_p: float, draw: float) -> int:
    """One row, token by token, in float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    kept, held = [], 0.0
    for token in order:
        kept.append(token)
        held += weights[token] / weights.sum()
        if held >= top_p:
            break
    target, passed = draw * sum(weights[kept]), 0.0
    for token in kept:
        passed += weights[token]
        if passed > target:
            return token
    return kept[-1]


@pytest.mark.parametrize("vocabulary", [5, 3 * SORTED_AT_FIRST])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 0.9), (1.0, 1.0), (2.5, 0.4), (5.0, 0.99)])
def test_tokens_are_those_worked_out_one_by_one(vocabulary: int, temperature: float, top_p: float) -> None:
    generator = np.random.default_rng(0)
    logits, draws = 3 * generator.standard_normal((50, vocabulary)), generator.random(50)
    sampling = SamplingSettings(temperature=temperature, top_p=top_p)

    chosen = choose_tokens(torch.tensor(logits), sampling, torch.tensor(draws)).tolist()
    expected = [by_hand(row, temperature, top_p, draw) for row, draw in zip(logits, draws, strict=True)]
    # A draw that falls on the border of two tokens may go either way in float32.
    assert np.mean([one == other for one, other in zip(chosen, expected, strict=True)]) >= 0.98


def test_frequencies_follow_the_distribution() -> None:
    probabilities = np.array([0.1, 0.5, 0.05, 0.35])
    draws = torch.linspace(0, 1, 20_001)[:-1]
    logits = torch.tensor(np.log(probabilities)).expand(len(draws), 4)

    chosen = choose_tokens(logits, SamplingSettings(temperature=1, top_p=1.0), draws)
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / len(draws), probabilities, atol=1e-3)

    chosen = choose_tokens(logits, SamplingSettings(temperature=1, top_p=0.8), draws)
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / len(draws), [0, 50 / 85, 0, 35 / 85], atol=1e-3)


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])

    assert choose_tokens(logits, SamplingSettings(temperature=0), torch.tensor([0.999, 0.999])).tolist() == [1, 0]
