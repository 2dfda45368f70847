"""The divergence between a policy and the one it began with, against its definition."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_moved_model

from ramo_ray.errors import EngineError, ModelError
from ramo_ray.models.policy import Answered, PolicyPair

TOKENS = st.lists(st.integers(3, 300), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def moved_policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moved") / "model"
    write_moved_model(tiny_model, folder, by=0.02)
    return folder


@pytest.fixture(scope="module")
def pair(moved_policy: Path, tiny_model: Path) -> PolicyPair:
    return PolicyPair(moved_policy, tiny_model)


@settings(max_examples=15)
@given(prompt=TOKENS, answer=TOKENS)
def test_it_is_the_sum_of_the_divergences_at_each_token(
    pair: PolicyPair, moved_policy: Path, tiny_model: Path, prompt: list[int], answer: list[int]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([prompt + answer])
    with torch.inference_mode():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits[0].double().softmax(-1).numpy()
            for path in (moved_policy, tiny_model)
        )
    places = range(len(prompt) - 1, len(ids[0]) - 1)
    expected = sum(float(np.sum(ours[at] * np.log(ours[at] / theirs[at]))) for at in places)
    assert expected > 0
    assert pair.divergence(Answered(prompt, answer)) == pytest.approx(expected, rel=1e-3)


def test_a_policy_that_did_not_move_has_none(tiny_model: Path) -> None:
    same = PolicyPair(tiny_model, tiny_model)
    answered = same.read([{"role": "user", "content": "Why?"}], "As it is so.")
    assert len(answered.answer) == len("As it is so.")
    assert same.divergence(answered) == 0.0
    assert same.divergence(answered._replace(answer=[])) == 0.0


def test_what_cannot_be_compared_is_refused(pair: PolicyPair, tiny_model: Path, tmp_path: Path) -> None:
    assert pair.divergence(Answered([5] * 500, [6] * 13)) is None
    assert pair.divergence(Answered([5] * 500, [6] * 12)) is not None
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ModelError, match="is no later state of that policy"):
        PolicyPair(other, tiny_model)


def test_output_that_is_not_finite_is_an_error(tiny_model: Path) -> None:
    import torch

    broken = PolicyPair(tiny_model, tiny_model)
    with torch.no_grad():
        broken.policy.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(EngineError, match="is not finite"):
        broken.divergence(Answered([5], [6]))
