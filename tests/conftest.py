"""What several test files share: a small real model, and a Ray of the tests' own."""

from __future__ import annotations

import gc
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tiny import write_tiny_model

# A busy machine is no reason to fail, and a run of the suite repeats the last one's examples.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

RAY_ENVIRONMENT = {
    # Ray Train looks after its workers every two seconds otherwise, which is most of what a small training takes.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray warns, in every process, that this will be its default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights from a seed, and a byte-level tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def long_context_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose rotary positions reach as far as a judge's prompt in bytes."""
    folder = tmp_path_factory.mktemp("tiny-long") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs on this machine, on ports of its own."""
    import ray

    os.environ |= RAY_ENVIRONMENT
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    with warnings.catch_warnings():
        # Ray ends its processes without waiting for them, and lets go of them.
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()
        gc.collect()
