"""A tiny reward model to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_reward_model


@pytest.fixture(scope="session")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of one output, whose rewards differ by tenths."""
    folder = tmp_path_factory.mktemp("served-reward")
    write_reward_model(tiny_model, folder, spread=30)
    return folder
