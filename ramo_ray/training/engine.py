"""What is DeepSpeed's: the engine around a model, its checkpoints, and its weights gathered from all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ramo_ray.settings import TrainingSettings

TAG = "state"
BUCKET = 50_000_000
"""Elements that ZeRO reduces at once. Its own 5e8 would take 2 GB beside the model, in every worker."""


def start_engine(model: Any, settings: TrainingSettings) -> Any:
    """Wrap a model for training in the process group that Ray Train has made."""
    import deepspeed
    import deepspeed.ops
    import torch

    # Without a GPU, DeepSpeed would compile a shared-memory all-reduce when first used, which needs a compiler and
    # whose lock file, left by a killed process, makes every later training wait for ever. Gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings), lr=settings.learning_rate)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(settings), dist_init_required=False
    )
    engine.train()
    return engine


def _parameter_groups(model: Any, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    parameters = list(model.parameters())
    matrices = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay}
    vectors = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """DeepSpeed's configuration for these settings.

    In bfloat16, stage 0 becomes 1: DeepSpeed would take an optimiser made for float16, whose losses were measured 4%
    off those in float32 after ten steps, where ZeRO 1's were 0.1% off.
    """
    bf16 = settings.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": max(settings.zero_stage, int(bf16)), "reduce_bucket_size": BUCKET}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        # A step ends where `step` is called: the last global batch of an epoch may have fewer micro-batches.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        # The optimiser is torch's also where its state is kept in main memory.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def save_checkpoint(engine: Any, folder: Path, step: int) -> None:
    """Write this worker's share of the weights and of the optimiser's state into a folder that all workers see."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=TAG, client_state={"step": step})


def load_checkpoint(engine: Any, folder: Path) -> int:
    """Restore weights and optimiser; returns the step they are of."""
    _, state = engine.load_checkpoint(str(folder), tag=TAG)
    step: int = state["step"]
    return step


def gather_weights(engine: Any, *, keep: bool) -> dict[str, Any]:
    """All weights, by name, on the CPU, whichever worker holds them; nothing where `keep` is false.

    Every worker must call it: under ZeRO 3 each holds a part of every tensor.
    """
    import deepspeed

    weights = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor]):
            if keep:
                weights[name] = tensor.detach().to("cpu", copy=True)
    return weights
