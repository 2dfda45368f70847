"""What the reward endpoint is configured by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ramo_ray.config import Config
from ramo_ray.settings import AdapterSettings, DType, JudgeSettings, SelectionSettings

TURN_ENDS = ("</s>", "<eos>", "<end_of_turn>")


class LimitSettings(Config):
    """What one request may ask, and how much may wait. What exceeds them is refused by status, never cut."""

    body_bytes: PositiveInt = 4_000_000
    """Of one request's body; more is 413."""
    text_chars: PositiveInt = 200_000
    """Of one message, prompt or response; more is 413."""
    items: Annotated[int, Field(ge=1, le=10_000)] = 1_024
    """Conversations of one request; more is 413."""
    tokens: PositiveInt = 4_096
    """Of one conversation, beside the model's context; more is 413."""
    queue_tokens: PositiveInt = 262_144
    """Tokens that wait at one replica; what would exceed them is 429 with Retry-After. Requests of more than a batch
    have half of it; one that exceeds that half is 413."""
    body_seconds: PositiveFloat = 10.0
    """Until a body must have arrived; later is 408."""
    seconds: PositiveFloat = 120.0
    """Until an answer must be there; then the work is dropped and the answer is 503 with Retry-After."""


class ReplicaSettings(Config):
    """The copies of the model. Several share a GPU where `num_gpus` is a fraction."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    """Replicas that the deployment may grow to while requests wait."""
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    target_requests: PositiveInt = 32
    """Requests under way at a replica above which another one is started."""
    most_requests: PositiveInt = 512
    """Requests that a replica takes at a time; more wait at the proxy."""
    queued_requests: PositiveInt = 2_048
    """Requests that wait at a proxy; more are 503."""
    drain_seconds: PositiveFloat = 150.0
    """That a replica which is to end has for what is under way: no less than `limits.seconds`."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaSettings:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) exceeds max ({self.max}); raise max or lower min.")
        return self


class CalibrationSettings(Config):
    """Where rewards of labelled responses lie; a calibrated reward counts deviations from their mean."""

    mean: float
    deviation: PositiveFloat


class ExplainSettings(Config):
    """What `/explain` asks: the Rule Adapter picks rules, the judge rates both responses on them."""

    adapter_model: str = Field(min_length=1)
    """Folder of the Rule Adapter."""
    rules: str = ""
    """A rule pool in YAML. Empty: the paper's 100 rules."""
    judge: JudgeSettings = JudgeSettings()
    adapter: AdapterSettings = AdapterSettings()
    selection: SelectionSettings = SelectionSettings()
    num_cpus: NonNegativeFloat = 1.0
    """Logical CPUs of the process that explains."""
    num_gpus: NonNegativeFloat = 0.0
    queued_requests: PositiveInt = 64
    """Requests that wait for it; more are 503."""


class ServingSettings(Config):
    """The arguments of `build_app`."""

    model: str = Field(min_length=1)
    """Folder of the reward model."""
    name: str = "reward"
    """What the model is called in replies."""
    dtype: DType = "float32"
    threads: PositiveInt | None = None
    """Threads of torch in one replica on CPU. Empty: all cores of the machine."""
    batch_tokens: PositiveInt = 2_048
    """Tokens that are scored together: more of them are quicker, and each waits longer."""
    tokens_file: str = ""
    """File of the bearer tokens that may ask, one a line; read again when it changes."""
    insecure: bool = False
    """Answer whoever asks. Without it, and without a token, nothing is served."""
    turn_ends: tuple[Annotated[str, Field(min_length=1)], ...] = TURN_ENDS
    """What policies end a turn with, beside all of the form `<|...|>`: taken off the answers given to `/get_reward`."""
    calibration: CalibrationSettings | None = None
    limits: LimitSettings = LimitSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    explain: ExplainSettings | None = None
    """Empty: no `/explain`."""

    @model_validator(mode="after")
    def _guarded(self) -> ServingSettings:
        if self.replicas.drain_seconds < self.limits.seconds:
            raise ValueError(
                f"replicas.drain_seconds ({self.replicas.drain_seconds:g}) is less than limits.seconds "
                f"({self.limits.seconds:g}), so a replica that ends would cut answers off; raise it."
            )
        if not self.tokens_file and not self.insecure:
            raise ValueError(
                "nobody could ask: name a file of bearer tokens in `tokens_file`, or set insecure=true to answer "
                "whoever reaches the port."
            )
        return self
