"""Flags: each that a configuration becomes is one that the installed OpenRLHF has, with the value that is meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from ramo_ray.ppo.launcher import REWARD_FUNCTION, Paths, Spread, flags
from ramo_ray.ppo.settings import PPOSettings

FOLDER = Path("/somewhere")
PATHS = Paths(*(FOLDER / name for name in Paths._fields))
SPREAD = Spread(10.0, 2.0)
PARSE = """
import argparse, json, os, runpy, sys
os.environ["RAMO_CPU_REHEARSAL"] = "1"
from ramo_ray.ppo import cpu_rehearsal
cpu_rehearsal.install()

class Parsed(Exception):
    pass

def parse(parser, *_):
    found = []
    for words in json.load(sys.stdin):
        found.append(vars(ArgumentParser.parse_known_args(parser, words)[0]))
        found[-1]["unknown"] = ArgumentParser.parse_known_args(parser, words)[1]
    print(json.dumps(found))
    raise Parsed

ArgumentParser = argparse.ArgumentParser
ArgumentParser.parse_args = parse
try:
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
except Parsed:
    pass
"""


def parsed(*configurations: list[str]) -> list[dict[str, Any]]:
    """What the installed OpenRLHF reads from command lines, and the words that it does not know."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(configurations), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_openrlhf_knows_every_flag_and_reads_what_is_meant() -> None:
    chosen = PPOSettings.model_validate(
        {
            "placement": "spread",
            "policy": {"nodes": 2, "gpus_per_node": 4},
            "rollout": {"engines": 3, "tensor_parallel": 2, "prompts_per_step": 256, "top_p": 0.9, "micro_batch": 8},
            "batch_size": 64,
            "kl_coefficient": 0.05,
            "gae_lambda": 0.9,
            "policy_optimiser": {"learning_rate": 3e-7, "warmup_ratio": 0.1},
            "reward": {"clip_deviations": 4},
        }
    )
    shared = PPOSettings(reward={"endpoints": ["http://host:1/get_reward"]})  # type: ignore[arg-type]
    spread, colocate, rehearsed, tiny, unknown = parsed(
        flags(chosen, PATHS, SPREAD, 7),
        flags(shared, PATHS._replace(reward=None), SPREAD, 7),
        flags(shared, PATHS, SPREAD, 7, rehearsal=True),
        flags(shared, PATHS, Spread(1e-6, 1e-5), 7),
        ["--actor.num_nodes", "3", "--actor.renamed", "3"],
    )
    assert unknown["unknown"] == ["--actor.renamed", "3"]
    for found in (spread, colocate, rehearsed, tiny):
        assert found["unknown"] == []
    assert tiny["reward.clip_range"] == pytest.approx([-4.9e-5, 5.1e-5])
    assert (spread["actor.num_nodes"], spread["actor.num_gpus_per_node"]) == (2, 4)
    assert (spread["vllm.num_engines"], spread["vllm.tensor_parallel_size"]) == (3, 2)
    assert (spread["rollout.batch_size"], spread["train.batch_size"], spread["rollout.top_p"]) == (256, 64, 0.9)
    assert (spread["algo.kl.init_coef"], spread["algo.advantage.lambd"]) == (0.1, 0.9)
    assert (spread["actor.adam.lr"], spread["actor.lr_warmup_ratio"]) == (3e-7, 0.1)
    assert spread["critic.adam.lr"] == 9e-6
    assert (spread["reward.clip_range"], spread["critic.value_clip"]) == ([2, 18], 1.0)
    assert (spread["train.colocate_all"], spread["vllm.enable_sleep"], spread["train.seed"]) == (False, False, 7)
    assert spread["reward.remote_url"] is None
    assert (colocate["train.colocate_all"], colocate["vllm.enable_sleep"], colocate["ds.enable_sleep"]) == (True,) * 3
    assert colocate["reward.remote_url"] == str(REWARD_FUNCTION)
    assert (spread["reward.normalize_enable"], colocate["reward.normalize_enable"]) == (False, False)
    assert (rehearsed["vllm.sync_backend"], rehearsed["ds.attn_implementation"]) == ("gloo", "sdpa")
    assert (rehearsed["vllm.enable_sleep"], rehearsed["ds.enable_sleep"]) == (False, False)


PLACED = st.sampled_from(["spread", "colocate", "async"])


@settings(max_examples=50, deadline=None)
@given(placement=PLACED, gpus=st.integers(1, 8), kl=st.sampled_from([0.0, 0.02]), rehearsal=st.booleans())
def test_flags_are_words_and_none_comes_twice(placement: str, gpus: int, kl: float, rehearsal: bool) -> None:
    role = {"gpus_per_node": gpus}
    given_ = PPOSettings.model_validate(
        {
            "placement": placement,
            **dict.fromkeys(("policy", "reference", "critic", "reward_model"), role),
            "rollout": {"engines": gpus, "prompts_per_step": 16 * gpus},
            "batch_size": 16 * gpus,
            "kl_coefficient": kl,
        }
    )
    words = flags(given_, PATHS, SPREAD, 0, rehearsal=rehearsal)
    names = [word for word in words if word.startswith("--")]
    assert len(set(names)) == len(names)
    assert all(isinstance(word, str) and word for word in words)
    assert "None" not in words
    assert ("--train.colocate_all" in names) == (placement != "spread")
    assert ("--train.async_enable" in names) == (placement == "async")


def test_the_reward_function_is_a_file_that_is_there() -> None:
    assert REWARD_FUNCTION.is_file()
