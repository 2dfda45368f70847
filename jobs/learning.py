"""What train_adapter and train_reward share: examples once, then the one worker loop, with its progress shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jobs.display import progress
from jobs.stage import Stage, read_json, write_json
from ramo_ray.settings import TrainingSettings


def learn(
    stage: Stage,
    *,
    task: Literal["adapter", "reward"],
    settings: TrainingSettings,
    seed: int,
    write: Callable[..., Any],
    details: dict[str, Any],
    rule_ids: Sequence[str] = (),
    r: int = 5,
) -> tuple[Any, dict[str, Any]]:
    """Write the examples, train on them and export `model/`.

    A Ray must be up. What was done before a stop is found again: the examples, the last checkpoint, the export.

    Returns:
        The examples' counts and the last step's metrics.
    """
    from ramo_ray.models.resolve import resolve
    from ramo_ray.models.templates import load_tokenizer
    from ramo_ray.pipelines.examples import Examples
    from ramo_ray.training.launch import fit

    examples, counts = stage.folder / "examples.parquet", stage.folder / "examples.json"
    if not counts.exists():
        tokenizer = load_tokenizer(resolve(settings.model, settings.revision))
        write_json(counts, write(examples, tokenizer, max_length=settings.max_length)._asdict())
    found = Examples(**read_json(counts))
    steps = _steps(examples, settings)
    last: dict[str, Any] = {}

    def poll() -> tuple[float, str]:
        return last.get("step", 0), _remark(last)

    with progress("training", steps, poll):
        final = fit(
            task=task,
            settings=settings,
            examples=examples,
            output=stage.folder,
            seed=seed,
            rule_ids=rule_ids,
            r=r,
            details={**details, "examples": found.rows, "left out as too long": found.too_long},
            on_step=last.update,
        )
    return found, final


def _remark(row: Mapping[str, Any]) -> str:
    """What a step is reported by; one without any critical rule has no accuracy."""
    if not row:
        return ""
    accuracy = f", accuracy {row['accuracy']:.3f}" if row["accuracy"] is not None else ""
    return f"loss {row['loss']:.4f}{accuracy}"


def _steps(examples: Path, settings: TrainingSettings) -> int:
    """Optimiser steps of the whole training."""
    import pyarrow.parquet as pq

    rows = int(pq.read_metadata(examples).num_rows)
    return settings.epochs * -(-rows // settings.global_batch)
