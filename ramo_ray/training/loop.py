"""The loop that every worker runs: batches to steps, steps to metrics, checkpoints and, at the end, a model.

Runs inside Ray Train's workers, in the process group that Ray Train makes. What a step computes depends on the
seed, the step and its global batch only, so a training that was interrupted ends like one that was not.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramo_ray import step_log
from ramo_ray.errors import TrainingError
from ramo_ray.models.resolve import resolve
from ramo_ray.training import engine as deepspeed_engine
from ramo_ray.training.batches import global_batches, learning_rate, share
from ramo_ray.training.examples import Examples
from ramo_ray.training.export import export
from ramo_ray.training.run import TrainingRun
from ramo_ray.training.tasks import TASKS, TrainingTask


class Place(NamedTuple):
    """Which of the workers this one is."""

    rank: int
    world: int


class Worker(NamedTuple):
    """What a step needs."""

    run: TrainingRun
    task: TrainingTask
    engine: Any
    examples: Examples
    place: Place

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.run.settings.global_batch)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.run.settings.epochs


def train_loop(config: dict[str, Any]) -> None:
    """Train from the last checkpoint, or from the base, to an exported model. `config` is a `TrainingRun`'s dump."""
    run = TrainingRun.model_validate(config)
    _prepare_process(run)
    base = resolve(run.settings.model, run.settings.revision)
    worker = _start(run, base)
    done = _resume(worker)
    batches = global_batches(len(worker.examples), run.settings.global_batch, run.settings.epochs, run.seed)
    for step, batch in enumerate(batches, start=1):
        if step <= done:
            continue
        row = _step(worker, step, batch)
        if worker.place.rank == 0:
            step_log.append(run.metrics_file, row)
        if step % run.settings.checkpoint_every == 0 or step == worker.steps:
            _checkpoint(worker, step, row)
    _export(worker, base)


def _prepare_process(run: TrainingRun) -> None:
    import ray.train
    import torch

    # Ray Train's and DeepSpeed's own notes; what goes wrong is raised, and progress is in the metrics.
    for name in ("", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        beside = ray.train.get_context().get_local_world_size()
        # Ray gives a task one OpenMP thread per whole CPU it reserves, which says nothing of the machine.
        torch.set_num_threads(run.settings.threads or max(1, (os.cpu_count() or 1) // beside))


def _start(run: TrainingRun, base: Path) -> Worker:
    import ray.train

    context = ray.train.get_context()
    task: TrainingTask = TASKS[run.task](run)
    examples = Examples(run.examples, run.task)
    engine = deepspeed_engine.start_engine(task.new_model(base), run.settings)
    return Worker(run, task, engine, examples, Place(context.get_world_rank(), context.get_world_size()))


def _resume(worker: Worker) -> int:
    """Go back to the last checkpoint; returns its step, 0 without one."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    step = 0 if checkpoint is None else deepspeed_engine.load_checkpoint(worker.engine, Path(checkpoint.path))
    if worker.place.rank == 0:
        step_log.rewind(worker.run.metrics_file, step)
    return step


def _step(worker: Worker, step: int, batch: NDArray[np.int64]) -> step_log.Row:
    """One optimiser step on a global batch; its row of metrics, the same on every worker."""
    import torch

    run, engine = worker.run, worker.engine
    started = time.perf_counter()
    torch.manual_seed(int(np.random.SeedSequence([run.seed, step, worker.place.rank]).generate_state(1)[0]))
    batch = batch[np.argsort(worker.examples.lengths[batch], kind="stable")]
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
    for part in share(batch, worker.place.rank, worker.place.world, run.settings.micro_batch):
        weights = torch.from_numpy(part.weights / len(batch)).to(engine.device)
        outcome = worker.task.outcome(engine, worker.examples, part, weights)
        # DeepSpeed averages gradients over workers, where the global batch's mean needs their sum.
        engine.backward(outcome.loss * worker.place.world)
        sums += torch.stack([outcome.loss.detach(), *outcome.answers, torch.tensor(outcome.tokens)]).to(sums)
    loss, right, total, tokens = _sum_over_workers(sums)
    _check_finite(loss, step, "loss")
    rate = learning_rate(step, steps=worker.steps, warmup=run.settings.warmup_steps, peak=run.settings.learning_rate)
    deepspeed_engine.set_learning_rate(engine, rate)
    engine.step()
    if engine.skipped_steps:
        _check_finite(math.nan, step, "gradient")
    return {
        "step": step,
        "steps": worker.steps,
        "epoch": step / worker.steps_per_epoch,
        "loss": loss,
        "accuracy": right / total if total else None,
        "learning_rate": rate,
        "tokens": int(tokens),
        "seconds": time.perf_counter() - started,
    }


def _sum_over_workers(sums: Any) -> list[float]:
    import torch.distributed

    torch.distributed.all_reduce(sums)
    total: list[float] = sums.tolist()
    return total


def _check_finite(value: float, step: int, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: the {what} is not finite. Lower training.learning_rate, or train in float32, "
            "in a new output folder."
        )


def _checkpoint(worker: Worker, step: int, row: step_log.Row) -> None:
    import ray.train
    from ray.train import CheckpointUploadMode

    # Written where Ray Train keeps checkpoints, not uploaded to there: the optimiser's state is large.
    folder = worker.run.checkpoints / worker.run.task / f"step-{step:06d}"
    deepspeed_engine.save_checkpoint(worker.engine, folder, step)
    ray.train.report(
        row,
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _export(worker: Worker, base: Path) -> None:
    first = worker.place.rank == 0
    weights = deepspeed_engine.gather_weights(worker.engine, keep=first)
    if first:
        last = step_log.read_rows(worker.run.metrics_file)[-1]
        export(worker.engine.module, weights, base=base, run=worker.run, last=last)
