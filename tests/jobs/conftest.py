"""A small configuration folder and source that whole pipelines run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import Setup

RULES = [
    "Accept the response that is polite.",
    "Accept the response that is short.",
    "Accept the response that protects privacy.",
    "Accept the response that names its sources.",
    "Accept the response that asks a question.",
    "Accept the response that gives an example.",
]
TOPICS = ("bread", "bicycles", "gardens", "maps", "kites", "lamps", "rivers", "clocks", "songs", "stones")


@pytest.fixture
def setup(tmp_path: Path, long_context_model: Path) -> Setup:
    """Ten benign trios with human labels, six rules, and every model the tiny one."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": RULES}))
    model, small = str(long_context_model), {"min": 1, "max": 1, "num_cpus": 0.25}
    training = {"model": model, "global_batch": 2, "warmup_steps": 1, "max_length": 4096, "checkpoint_every": 2}
    write = {
        "common": {
            "output": str(tmp_path / "run"),
            # A random model now and then writes nothing.
            "max_bad_fraction": 0.5,
            "rules": str(tmp_path / "rules.yaml"),
            "ray": {"num_cpus": 2, "object_store_gib": 0.3},
            "judge": {"model": model, "layout": "rule_last", "batch_size": 1, "actors": small},
            "adapter": {"max_length": 4096, "actors": small},
            "reward": {"actors": small},
            "embedder": {"actors": small},
            "selection": {"r": 2},
        },
        "generate_responses": {
            "generators": [
                {"name": name, "model": model, "actors": small, "sampling": {"max_tokens": 8, "seed": seed}}
                for name, seed in (("one", 1), ("two", 2))
            ]
        },
        "train_adapter": {"training": training},
        "train_reward": {"training": training},
    }
    for name, values in write.items():
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(values))
    trios = tmp_path / "trios.jsonl"
    trios.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    return Setup(configs, trios, tmp_path / "run")


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Tell me about {topic}.",
            "chosen": f"Gladly. There is much to say about {topic}.",
            "rejected": f"No. {topic.title()} bore me.",
        }
        for topic in TOPICS
    ]
