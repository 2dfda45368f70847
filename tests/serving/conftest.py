"""A tiny reward model, and its service within the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of one output, whose rewards differ by tenths."""
    import torch

    from ramo_ray.models.reward import new_reward_model
    from ramo_ray.models.templates import load_tokenizer

    folder = tmp_path_factory.mktemp("served-reward")
    model = new_reward_model(tiny_model, seed=3)
    with torch.no_grad():
        model.score.weight.mul_(30)
    model.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder
