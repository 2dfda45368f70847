"""GPUs by role, and clusters that have not got them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ramo_ray.errors import PlacementError
from ramo_ray.ppo.placement import GIB, check_cluster, gpu_hours, memory, needs
from ramo_ray.ppo.settings import PPOSettings

MODELS = ("policy", "reference", "critic", "reward_model")


def chosen(**values: Any) -> PPOSettings:
    return PPOSettings.model_validate(values)


def test_spread_gives_each_role_its_own() -> None:
    spread = chosen(placement="spread", policy={"gpus_per_node": 4}, rollout={"engines": 2, "tensor_parallel": 2})
    assert {need.role: need.gpus for need in needs(spread)} == {
        "policy": 4,
        "critic": 1,
        "reference": 1,
        "reward model": 1,
        "rollouts": 4,
    }


def test_without_kl_there_is_no_reference_and_endpoints_spare_the_reward_model() -> None:
    found = needs(chosen(placement="spread", kl_coefficient=0, reward={"endpoints": ["http://a"]}))
    assert [need.role for need in found] == ["policy", "critic", "rollouts"]


def test_colocate_needs_the_policys_gpus_and_async_the_engines_too() -> None:
    roles = {name: {"gpus_per_node": 4} for name in MODELS}
    assert [need.gpus for need in needs(chosen(placement="colocate", **roles, rollout={"engines": 4}))] == [4]
    assert [need.gpus for need in needs(chosen(placement="async", **roles, rollout={"engines": 3}))] == [4, 3]


def test_too_few_gpus_are_refused_with_what_each_role_needs() -> None:
    spread = chosen(placement="spread")
    check_cluster(spread, [2, 3])
    with pytest.raises(PlacementError, match=r"5 GPUs \(policy: 1; critic: 1; .*rollouts: 1\).* has 4.*rehearsal"):
        check_cluster(spread, [4])
    with pytest.raises(PlacementError, match="has 0"):
        check_cluster(spread, [])


def test_an_engine_does_not_span_nodes() -> None:
    spread = chosen(placement="spread", rollout={"tensor_parallel": 4})
    with pytest.raises(PlacementError, match="4 GPUs of one engine must be on one node, and the largest has 2"):
        check_cluster(spread, [2] * 8)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"max_length": 512}, "leaves no room for a prompt"),
        ({"batch_size": 100}, "does not divide the 128 responses"),
        ({"placement": "colocate", "rollout": {"engines": 2}}, "engines stand on the policy's 1 GPUs"),
        ({"placement": "async", "critic": {"nodes": 2}}, "share the same GPUs, but they have .*critic 2 x 1"),
        (
            {"critic": {"gpus_per_node": 3}, "placement": "spread", "rollout": {"prompts_per_step": 384}},
            "no multiple of micro_batch = 2 times the critic's 3 GPUs",
        ),
        (
            {"reward_model": {"nodes": 3}, "placement": "spread"},
            "no multiple of rollout.micro_batch = 4 times the reward",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        chosen(**values)


def test_roles_that_a_run_has_not_may_have_any_shape() -> None:
    four = {"gpus_per_node": 4}
    roles: dict[str, Any] = dict.fromkeys(("policy", "critic"), four)
    with pytest.raises(ValidationError, match="reference 1 x 1"):
        chosen(**roles, rollout={"engines": 4})
    chosen(**roles, rollout={"engines": 4}, kl_coefficient=0, reward={"endpoints": ["http://a"]})


def test_memory_counts_weights_gradients_and_adam() -> None:
    whole = memory(chosen(offload_optimiser=False), GIB, GIB)
    assert whole == {"policy": 16.0, "critic": 16.0, "reference": 2.0, "reward model": 2.0}
    assert memory(chosen(), GIB, GIB)["policy"] == 4.0
    remote = memory(chosen(reward={"endpoints": ["http://a"]}), GIB, 0)
    assert (remote["critic"], "reward model" in remote) == (4.0, False)


def test_gpu_hours_are_the_arithmetic_of_all_that_read_and_learn() -> None:
    one = chosen(gpu_tflops=1)
    # Written, read by policy, reference, critic and reward model: 5 times 2; learnt by two: 2 times 6.
    assert gpu_hours(one, 10**9, 10**9, 3600, 1000.0) == pytest.approx(22.0)
    assert gpu_hours(chosen(gpu_tflops=2, episodes=2), 10**9, 10**9, 3600, 1000.0) == pytest.approx(22.0)
    assert gpu_hours(chosen(gpu_tflops=1, kl_coefficient=0), 10**9, 10**9, 3600, 1000.0) == pytest.approx(20.0)
    assert gpu_hours(chosen(gpu_tflops=1, placement="spread"), 10**9, 10**9, 3600, 1000.0) == pytest.approx(110.0)


@given(gpus=st.integers(1, 16), stage=st.sampled_from([2, 3]), offload=st.booleans())
def test_more_gpus_never_hold_more(gpus: int, stage: int, offload: bool) -> None:
    def held(count: int) -> float:
        role = {"gpus_per_node": count}
        shape = {"rollout": {"prompts_per_step": 8 * count}, "batch_size": 2 * count, "placement": "spread"}
        return memory(chosen(policy=role, zero_stage=stage, offload_optimiser=offload, **shape), 10**9, 10**9)["policy"]

    assert held(gpus + 1) <= held(gpus)
