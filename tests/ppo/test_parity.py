"""PPO's own reward model against ours: the same conversation, the same tokens, the same reward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

from ramo_ray.core.records import Message
from ramo_ray.models.templates import encode_chat, load_tokenizer, prompt_text, reward_token_ids

pytestmark = pytest.mark.slow
ROWS: list[tuple[list[Message], str]] = [
    ([{"role": "user", "content": "How do I boil an egg?"}], "Eight minutes in boiling water."),
    ([{"role": "user", "content": "Why?"}], ""),
    (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "content": "The Elbe."},
            {"role": "user", "content": "Another, “longer” one — naïvely:\n\n\t日本?"},
        ],
        "The Shinano.\n\nIt is 367 km long.",
    ),
]
SCORE = """
import json, os, sys
os.environ["RAMO_CPU_REHEARSAL"] = "1"
from ramo_ray.ppo import cpu_rehearsal
cpu_rehearsal.install()
import torch
from openrlhf.models import get_llm_for_sequence_regression
model = get_llm_for_sequence_regression(sys.argv[1], "reward", attn_implementation="sdpa", param_dtype="bf16")
model.eval()
rewards = []
with torch.no_grad():
    for ids, padding in json.load(sys.stdin):
        # As rollouts come: padded on the right.
        row = torch.tensor([ids + [0] * padding])
        mask = torch.tensor([[1] * len(ids) + [0] * padding])
        rewards.append(float(model(row, mask)))
print(json.dumps(rewards))
"""


def test_what_a_rollout_ends_with_is_what_a_reward_is_read_at(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    for prompt, response in ROWS:
        asked = tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        assert asked == encode_chat(tokenizer, prompt, add_generation_prompt=True)
        written = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert [*asked, *written, tokenizer.eos_token_id] == reward_token_ids(tokenizer, prompt, response)


def test_ppos_reward_is_ours(reward_model: Path) -> None:
    from ramo_ray.models.reward import RewardModel

    tokenizer = load_tokenizer(reward_model)
    rows = [reward_token_ids(tokenizer, prompt, response) for prompt, response in ROWS]
    ours = {dtype: RewardModel(reward_model, dtype=dtype).score(rows) for dtype in ("float32", "bfloat16")}
    given = [(ids, padding) for padding in (0, 7) for ids in rows]
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(reward_model)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.reshape(json.loads(done.stdout.splitlines()[-1]), (2, len(rows)))
    assert np.ptp(ours["float32"]) > 0.2
    for scores in ours.values():
        assert np.abs(theirs - scores).max() < 2e-2
