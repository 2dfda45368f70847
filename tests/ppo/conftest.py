"""A reward model to align the tiny policy with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_reward_model


@pytest.fixture(scope="session")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy's weights with a new head of one output, whose rewards differ by tenths."""
    folder = tmp_path_factory.mktemp("tiny-reward")
    write_reward_model(tiny_model, folder, spread=10)
    return folder
