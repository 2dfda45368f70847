"""What PPO's roles need of a cluster, what they hold of a GPU's memory, and how long they keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ramo_ray.errors import PlacementError
from ramo_ray.ppo.settings import PPOSettings

GIB = 2**30
WEIGHTS, GRADIENTS, ADAM = 2, 2, 12
"""Bytes a parameter in bfloat16; Adam keeps a float32 copy and two moments."""


class Need(NamedTuple):
    """GPUs that a role, or several that share them, stand on: the most that one node must hold, and all together."""

    role: str
    gpus: int
    on_one_node: int


def needs(settings: PPOSettings) -> list[Need]:
    """What the placement asks for, role by role."""
    models = settings.models
    engines = Need("rollouts", settings.rollout.gpus, settings.rollout.tensor_parallel)
    if settings.placement == "spread":
        return [*(Need(name, role.gpus, 1) for name, role in models.items()), engines]
    shared = Need(", ".join(models), settings.policy.gpus, 1)
    if settings.placement == "async":
        return [shared, engines]
    return [Need(f"{shared.role}, rollouts", shared.gpus, engines.on_one_node)]


def check_cluster(settings: PPOSettings, gpus_by_node: Sequence[float]) -> None:
    """Refuse a cluster that has not the GPUs.

    Raises:
        PlacementError: says what each role needs, and what there is.
    """
    asked = needs(settings)
    total, most = int(sum(gpus_by_node)), int(max(gpus_by_node, default=0))
    told = "; ".join(f"{need.role}: {need.gpus}" for need in asked)
    if (wanted := sum(need.gpus for need in asked)) > total:
        raise PlacementError(
            f"PPO with placement = {settings.placement} needs {wanted} GPUs ({told}), and the cluster has {total}. Add "
            "nodes, give roles fewer GPUs, or share them with placement = colocate; without any GPU, try the "
            "configuration with rehearsal=true."
        )
    for need in asked:
        if need.on_one_node > most:
            raise PlacementError(
                f"rollout.tensor_parallel = {need.on_one_node} GPUs of one engine must be on one node, and the "
                f"largest has {most}."
            )


def memory(settings: PPOSettings, policy: int, reward: int) -> dict[str, float]:
    """GiB that each model keeps on each of its GPUs: weights, gradients, Adam. Activations and engines come on top.

    Args:
        policy: parameters of the policy, and of its reference.
        reward: parameters of the reward model; the critic's too, unless rewards come from endpoints.
    """
    critic = policy if settings.reward.endpoints else reward
    found = {
        "policy": _trained(policy, settings, settings.policy.gpus),
        "critic": _trained(critic, settings, settings.critic.gpus),
    }
    if settings.kl_coefficient:
        found["reference"] = _frozen(policy, settings, settings.reference.gpus)
    if not settings.reward.endpoints:
        found["reward model"] = _frozen(reward, settings, settings.reward_model.gpus)
    return {role: size / GIB for role, size in found.items()}


def _trained(parameters: int, settings: PPOSettings, gpus: int) -> float:
    weights = WEIGHTS / gpus if settings.zero_stage == 3 else WEIGHTS
    return parameters * (weights + (GRADIENTS + (0 if settings.offload_optimiser else ADAM)) / gpus)


def _frozen(parameters: int, settings: PPOSettings, gpus: int) -> float:
    return parameters * WEIGHTS / (gpus if settings.zero_stage == 3 else 1)


def gpu_hours(settings: PPOSettings, policy: int, reward: int, prompts: int, tokens: float) -> float:
    """GPU-hours of the models' arithmetic, at `gpu_tflops`: 2 operations a parameter and token read, 6 learnt from.

    The policy, its reference, the critic and the reward model read each response, and writing it counts as reading it
    once more. While one role works, GPUs of another's wait, so what has GPUs of its own is counted for all that time.

    Args:
        policy: parameters of the policy, and of its reference.
        reward: parameters of the reward model; the critic's too, unless rewards come from endpoints.
        prompts: of one episode.
        tokens: of a prompt and its response, on average.
    """
    critic = policy if settings.reward.endpoints else reward
    readers = policy * (3 if settings.kl_coefficient else 2) + critic + (0 if settings.reward.endpoints else reward)
    learners = (policy + critic) * settings.epochs
    responses = prompts * settings.rollout.responses_per_prompt * settings.episodes
    operations = responses * tokens * (2 * readers + 6 * learners)
    return operations * len(needs(settings)) / (settings.gpu_tflops * 1e12) / 3600
