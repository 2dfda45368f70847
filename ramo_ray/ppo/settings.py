"""What PPO is configured by: roles and where they go, rollouts, the reward, and the algorithm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ramo_ray.config import Config
from ramo_ray.settings import Fraction

Placement = Literal["spread", "colocate", "async"]


class RoleSettings(Config):
    """One model of PPO, in one process a GPU."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 1

    @property
    def gpus(self) -> int:
        """Processes, and GPUs where a role has its own."""
        return self.nodes * self.gpus_per_node


class RolloutSettings(Config):
    """How responses are written by vLLM."""

    engines: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    gpu_memory: Annotated[float, Field(gt=0, le=0.95)] = 0.6
    """Share of a GPU's memory that an engine takes; with placement colocate the models need the rest."""
    prompts_per_step: PositiveInt = 128
    """Prompts that are answered between two updates of the weights."""
    responses_per_prompt: PositiveInt = 1
    max_new_tokens: PositiveInt = 512
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    micro_batch: PositiveInt = 4
    """Responses that a model reads at once when log-probabilities, values and rewards are computed."""
    correction: Literal["off", "token", "seq"] = "token"
    """Whether tokens, or whole responses, of which vLLM and the policy think too differently are left out, and the
    others weighed by the ratio. The curves then show how far the two are apart."""
    eager: bool = False
    """Do without CUDA graphs: a quicker start, slower writing."""

    @property
    def gpus(self) -> int:
        """GPUs of all engines."""
        return self.engines * self.tensor_parallel


class PPORewardSettings(Config):
    """Where rewards come from: a reward model in the job, or endpoints."""

    endpoints: tuple[str, ...] = ()
    """URLs that answer {"query": [...]} with {"rewards": [...]}. Empty: the reward model runs in the job."""
    patience_s: PositiveFloat = 600.0
    """How long endpoints may be away or busy before the run is given up."""
    timeout_s: PositiveFloat = 180.0
    """Of one request."""
    clip_deviations: PositiveFloat = 5.0
    """Rewards are clipped this many standard deviations from their mean, as measured before the start."""


class OptimiserSettings(Config):
    learning_rate: PositiveFloat
    warmup_ratio: Fraction = 0.03
    max_grad_norm: PositiveFloat = 1.0


class PPOSettings(Config):
    """PPO by OpenRLHF. Where the paper says nothing, the values are those of OpenRLHF's own PPO recipes."""

    placement: Placement = "colocate"
    """spread: each role has GPUs of its own. colocate: all share the policy's, and take turns. async: the models
    share, the engines have their own and write while the models learn."""
    policy: RoleSettings = RoleSettings()
    reference: RoleSettings = RoleSettings()
    critic: RoleSettings = RoleSettings()
    reward_model: RoleSettings = RoleSettings()
    rollout: RolloutSettings = RolloutSettings()
    reward: PPORewardSettings = PPORewardSettings()
    policy_optimiser: OptimiserSettings = OptimiserSettings(learning_rate=5e-7)
    critic_optimiser: OptimiserSettings = OptimiserSettings(learning_rate=9e-6)
    episodes: PositiveInt = 1
    """Times that the prompts are gone through."""
    epochs: PositiveInt = 1
    """Times that each batch of responses is learnt from."""
    batch_size: PositiveInt = 128
    """Responses of one optimiser step."""
    micro_batch: PositiveInt = 2
    """Responses that a GPU computes at once; the rest of its share is accumulated."""
    max_length: PositiveInt = 2048
    """Most tokens of prompt and response together; longer prompts are set aside beforehand, and counted."""
    kl_coefficient: NonNegativeFloat = 0.01
    """Weight of the KL term against the policy as it began (1/β of equation 8), where rewards count in their
    deviations. 0: none, and no reference."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(gt=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the policy's ratio (PPO's ε)."""
    value_clip: PositiveFloat = 0.5
    """How far a value may move in one update before its loss is clipped, in deviations of the rewards."""
    zero_stage: Literal[2, 3] = 2
    """DeepSpeed's ZeRO stage."""
    offload_optimiser: bool = True
    """Keep the optimisers' states in main memory."""
    gradient_checkpointing: bool = True
    attention: Literal["flash_attention_2", "sdpa", "eager"] = "flash_attention_2"
    gpu_tflops: PositiveFloat = 100.0
    """Operations a second, in 10¹², that a GPU really does: for the estimate of GPU-hours alone."""
    save_every: PositiveInt = 20
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _fits_together(self) -> PPOSettings:
        if self.rollout.max_new_tokens >= self.max_length:
            raise ValueError(
                f"rollout.max_new_tokens = {self.rollout.max_new_tokens} leaves no room for a prompt in "
                f"max_length = {self.max_length}."
            )
        responses = self.rollout.prompts_per_step * self.rollout.responses_per_prompt
        if responses % self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} does not divide the {responses} responses of a step "
                "(rollout.prompts_per_step times rollout.responses_per_prompt)."
            )
        for name, role in self.models.items():
            # Otherwise GPUs of a role get unequal shares, and wait for each other for ever.
            if responses % (self.rollout.micro_batch * role.gpus):
                raise ValueError(
                    f"a step's {responses} responses are no multiple of rollout.micro_batch = "
                    f"{self.rollout.micro_batch} times the {name}'s {role.gpus} GPUs."
                )
            if self.batch_size % (self.micro_batch * role.gpus):
                raise ValueError(
                    f"batch_size = {self.batch_size} is no multiple of micro_batch = {self.micro_batch} times the "
                    f"{name}'s {role.gpus} GPUs."
                )
        if self.placement != "spread":
            self._shares_one_shape()
        if self.placement == "colocate" and self.rollout.gpus != self.policy.gpus:
            raise ValueError(
                f"with placement = colocate the engines stand on the policy's {self.policy.gpus} GPUs, but "
                f"rollout.engines times rollout.tensor_parallel = {self.rollout.gpus}."
            )
        return self

    @property
    def models(self) -> dict[str, RoleSettings]:
        """The models that a run has, by name: no reference without a KL term, no reward model beside endpoints."""
        found = {"policy": self.policy, "critic": self.critic}
        if self.kl_coefficient:
            found["reference"] = self.reference
        if not self.reward.endpoints:
            found["reward model"] = self.reward_model
        return found

    def _shares_one_shape(self) -> None:
        shapes = {name: (role.nodes, role.gpus_per_node) for name, role in self.models.items()}
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{name} {nodes} x {gpus}" for name, (nodes, gpus) in shapes.items())
            raise ValueError(f"with placement = {self.placement} all models share the same GPUs, but they have {told}.")
