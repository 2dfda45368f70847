"""Start a training on the Ray that the caller is connected to, follow it, and end with its model or its error."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ramo_ray.config import find_ramo_error
from ramo_ray.errors import TrainingError
from ramo_ray.settings import TrainingSettings
from ramo_ray.step_log import Follower, Row, read_rows
from ramo_ray.training.examples import Examples
from ramo_ray.training.run import Task, TrainingRun, claim

POLL_SECONDS = 0.2
STARTS = 10
"""Times that Ray Train waits a minute for the workers' resources before it gives up: nodes may still be starting."""

logger = logging.getLogger(__name__)


def fit(
    *,
    task: Task,
    settings: TrainingSettings,
    examples: Path,
    output: Path,
    seed: int,
    rule_ids: Sequence[str] = (),
    r: int = 5,
    details: dict[str, Any] | None = None,
    on_step: Callable[[Row], None] | None = None,
) -> Row:
    """Train an adapter or a reward model; returns the last step's metrics. The model is then in `<output>/model`.

    Ray must be initialised. Calling it again with the same arguments continues from the last checkpoint, and returns
    at once where the model is there already. `on_step` gets every step's row once and in order, those of an
    interrupted call before this one included, in the thread that called. `examples` must not change in between, and
    with `output` must lie where all nodes see them. Raises `TrainingError` for no examples, for a loss that is not
    finite, for an output of another training, for workers that keep dying; errors of the models as they are.
    """
    run = TrainingRun(
        task=task,
        settings=_settled(settings),
        examples=examples.resolve(),
        output=output.resolve(),
        seed=seed,
        rule_ids=tuple(rule_ids),
        r=r,
        details=details or {},
    )
    Examples(run.examples, task)
    claim(run)
    if not run.model_folder.exists():
        _forget_torn_snapshot(run)
        _follow(run, on_step)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return read_rows(run.metrics_file)[-1]


def _settled(settings: TrainingSettings) -> TrainingSettings:
    """The same, a model's folder by its absolute path: Ray Train's workers run in a folder of their own."""
    folder = Path(settings.model).expanduser()
    return settings.model_copy(update={"model": str(folder.resolve())}) if folder.is_dir() else settings


def _forget_torn_snapshot(run: TrainingRun) -> None:
    """Ray Train refuses to start over its list of checkpoints if a kill came while it wrote that."""
    file = run.checkpoints / run.task / "checkpoint_manager_snapshot.json"
    try:
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except ValueError:
        logger.warning("%s is incomplete; the training begins anew.", file)
        file.unlink()


def _follow(run: TrainingRun, on_step: Callable[[Row], None] | None) -> None:
    """Train in a thread, so that this one hears Ctrl-C: Ray Train would catch it, and end the process with status 0."""
    failure: list[BaseException] = []

    def train() -> None:
        try:
            _trainer(run).fit()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            failure.append(error)

    follower = Follower(run.metrics_file)
    thread = threading.Thread(target=train, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if on_step is not None:
            for row in follower.new_rows():
                on_step(row)
    if failure:
        raise _readable(failure[0], run)


def _trainer(run: TrainingRun) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ramo_ray.training.loop import train_loop

    settings = run.settings
    resources = {"CPU": settings.num_cpus} | ({"GPU": settings.num_gpus} if settings.num_gpus else {})
    return TorchTrainer(
        train_loop,
        train_loop_config=run.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers, resources_per_worker=resources, use_gpu=settings.num_gpus > 0
        ),
        run_config=RunConfig(
            name=run.task,
            storage_path=str(run.checkpoints),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=STARTS),
            callbacks=[_stop_at_own_errors()],
        ),
    )


def _stop_at_own_errors() -> Any:
    """A callback that ends the run at an error of ours: trying again what cannot go on would only take time."""
    from ray.train import UserCallback

    class StopAtOwnErrors(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            for error in worker_exceptions.values():
                found = find_ramo_error(error)
                if found is not None:
                    raise found

    return StopAtOwnErrors()


def _readable(error: BaseException, run: TrainingRun) -> BaseException:
    """Our own error out of Ray Train's, or one that says what would do; anything else as it is."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    failure = error.controller_failure if isinstance(error, ControllerError) else error
    found = find_ramo_error(failure)
    if found is not None:
        return found
    if "WorkerGroupStartup" in type(failure).__name__:
        return TrainingError(
            f"no place for {run.settings.workers} workers of {run.settings.num_cpus} CPUs and {run.settings.num_gpus} "
            "GPUs each. Lower training.workers, training.num_cpus or training.num_gpus, or add nodes."
        )
    if isinstance(error, WorkerGroupError) and any(isinstance(e, RayActorError) for e in _causes(error)):
        return TrainingError(
            f"workers died {run.settings.max_failures + 1} times, most often for lack of memory. Lower "
            "training.micro_batch; run again to go on from the last checkpoint."
        )
    return error


def _causes(error: Any) -> list[BaseException]:
    return [getattr(e, "health_check_failure", e) for e in error.worker_failures.values()]
