"""A PPO configuration to OpenRLHF's flags. Pure: nothing is started, nothing is imported of OpenRLHF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ramo_ray.ppo.settings import PPOSettings, RoleSettings

REWARD_FUNCTION = Path(__file__).with_name("reward_function.py")
RUN_NAME = "ppo"
"""Folder of the curves within `Paths.tensorboard`."""


class Paths(NamedTuple):
    """Where a run finds its models and prompts, and where it writes; on a cluster, folders that all nodes see.

    `reward` is None where rewards come from endpoints; `critic` is what the critic starts from.
    """

    policy: Path
    critic: Path
    reward: Path | None
    prompts: Path
    model: Path
    checkpoints: Path
    tensorboard: Path


class Spread(NamedTuple):
    """Mean and standard deviation of rewards, as measured."""

    mean: float
    deviation: float


def flags(settings: PPOSettings, paths: Paths, spread: Spread, seed: int, *, rehearsal: bool = False) -> list[str]:
    """The command line of `openrlhf.cli.train_ppo_ray` (0.11.2).

    What is compared with rewards is configured in their deviations, and scaled by the measured `spread` here: the
    clip range, the KL coefficient, the values' clip. That is the same as standardised rewards, and OpenRLHF's own
    standardising reads numbers that transformers 5 leaves unset. A `rehearsal` asks for what works without a GPU:
    weights by gloo, no sleeping, no flash attention.
    """
    options = {
        **_models(paths),
        **_roles(settings),
        **_rollout(settings),
        **_learning(settings, spread),
        **_optimisers(settings),
        **_deepspeed(settings),
        "data.prompt_dataset": paths.prompts,
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": settings.max_length,
        "ckpt.output_dir": paths.model,
        "ckpt.path": paths.checkpoints,
        "ckpt.save_steps": settings.save_every,
        "ckpt.max_num": 2,
        "ckpt.load_enable": True,
        "ckpt.best_metric_key": "none",
        "logger.tensorboard_dir": paths.tensorboard,
        "logger.wandb.run_name": RUN_NAME,
        "train.seed": seed,
    }
    return list(_words(options | (_rehearsed() if rehearsal else {})))


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value is False or value is None:
            continue
        yield f"--{name}"
        if value is not True:
            yield from (_word(one) for one in (value if isinstance(value, tuple) else (value,)))


def _word(value: Any) -> str:
    """A value without an exponent: argparse takes "-4e-05" for a flag."""
    return format(Decimal(str(value)), "f") if isinstance(value, float) else str(value)


def _models(paths: Paths) -> dict[str, Any]:
    return {
        "actor.model_name_or_path": paths.policy,
        "critic.model_name_or_path": paths.critic,
        # Left empty where endpoints give the rewards, which our own function asks: OpenRLHF's gives up after 5 seconds.
        "reward.model_name_or_path": paths.reward,
        "reward.remote_url": None if paths.reward else REWARD_FUNCTION,
    }


def _roles(settings: PPOSettings) -> dict[str, Any]:
    def role(name: str, own: RoleSettings) -> dict[str, Any]:
        return {f"{name}.num_nodes": own.nodes, f"{name}.num_gpus_per_node": own.gpus_per_node}

    shared = settings.placement != "spread"
    return {
        **role("actor", settings.policy),
        **role("ref", settings.reference),
        **role("critic", settings.critic),
        **role("reward", settings.reward_model),
        "train.colocate_all": shared,
        "train.async_enable": settings.placement == "async",
        "ds.enable_sleep": shared,
        "vllm.enable_sleep": settings.placement == "colocate",
    }


def _rollout(settings: PPOSettings) -> dict[str, Any]:
    rollout = settings.rollout
    return {
        "vllm.num_engines": rollout.engines,
        "vllm.tensor_parallel_size": rollout.tensor_parallel,
        "vllm.gpu_memory_utilization": rollout.gpu_memory,
        "vllm.enforce_eager": rollout.eager,
        # The prefixes of several responses to a prompt are the same; the cache is emptied at each new set of weights.
        "vllm.enable_prefix_caching": rollout.responses_per_prompt > 1,
        "rollout.batch_size": rollout.prompts_per_step,
        "rollout.n_samples_per_prompt": rollout.responses_per_prompt,
        "rollout.micro_batch_size": rollout.micro_batch,
        "rollout.max_new_tokens": rollout.max_new_tokens,
        "rollout.temperature": rollout.temperature,
        "rollout.top_p": rollout.top_p,
        "algo.advantage.is_correction_level": rollout.correction,
    }


def _learning(settings: PPOSettings, spread: Spread) -> dict[str, Any]:
    reach = settings.reward.clip_deviations * spread.deviation
    return {
        "algo.advantage.estimator": "gae",
        "algo.advantage.gamma": settings.gamma,
        "algo.advantage.lambd": settings.gae_lambda,
        "algo.kl.init_coef": settings.kl_coefficient * spread.deviation,
        "actor.eps_clip": settings.clip,
        "critic.value_clip": settings.value_clip * spread.deviation,
        # Only logged.
        "actor.entropy_coef": 0.0,
        "reward.clip_range": (spread.mean - reach, spread.mean + reach),
        "train.batch_size": settings.batch_size,
        "train.micro_batch_size": settings.micro_batch,
        "train.max_epochs": settings.epochs,
        "train.num_episodes": settings.episodes,
    }


def _optimisers(settings: PPOSettings) -> dict[str, Any]:
    return {
        f"{name}.{key}": value
        for name, own in (("actor", settings.policy_optimiser), ("critic", settings.critic_optimiser))
        for key, value in (
            ("adam.lr", own.learning_rate),
            ("lr_warmup_ratio", own.warmup_ratio),
            ("max_norm", own.max_grad_norm),
        )
    }


def _deepspeed(settings: PPOSettings) -> dict[str, Any]:
    return {
        "ds.zero_stage": settings.zero_stage,
        "ds.adam_offload": settings.offload_optimiser,
        "ds.attn_implementation": settings.attention,
        "actor.gradient_checkpointing_enable": settings.gradient_checkpointing,
    }


def _rehearsed() -> dict[str, Any]:
    """What differs without a GPU, where there is no memory of its own to sleep out of."""
    return {
        "vllm.sync_backend": "gloo",
        "vllm.enforce_eager": True,
        "vllm.enable_sleep": False,
        "ds.enable_sleep": False,
        "ds.adam_offload": True,
        "ds.attn_implementation": "sdpa",
    }
