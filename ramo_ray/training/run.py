"""One training as data: what to train on what, where its files are, and what makes it the same training again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ramo_ray.config import Config
from ramo_ray.errors import TrainingError
from ramo_ray.settings import TrainingSettings

Task = Literal["adapter", "reward"]

FREE = {"micro_batch", "max_length", "checkpoint_every", "max_failures", "num_cpus", "num_gpus", "threads"}
"""Settings that may change between an interrupted training and its continuation: they do not change its result."""


class TrainingRun(Config):
    """What a worker is told. It crosses to workers as a dict and is validated there again."""

    task: Task
    settings: TrainingSettings
    examples: Path
    """Parquet or Arrow file of token ids."""
    output: Path
    seed: int
    rule_ids: tuple[str, ...] = ()
    """The pool's ids, in order; the adapter's outputs."""
    r: int = 5
    """Rules that recall is measured at."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Facts for the model card, by name."""

    @property
    def metrics_file(self) -> Path:
        return self.output / "metrics.jsonl"

    @property
    def model_folder(self) -> Path:
        return self.output / "model"

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    @property
    def identity_file(self) -> Path:
        return self.output / "training.json"

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON values by name."""
        settings = self.settings.model_dump(mode="json", exclude=FREE)
        rules = hashlib.blake2b("\n".join(self.rule_ids).encode(), digest_size=12).hexdigest()
        return settings | {
            "task": self.task,
            "seed": self.seed,
            "r": self.r,
            "rules": rules,
            "examples": self._digest(),
        }

    def _digest(self) -> str:
        with self.examples.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=12)).hexdigest()


def claim(run: TrainingRun) -> None:
    """Make the output folder this training's. Raises `TrainingError` if another training has begun there."""
    identity, file = run.identity(), run.identity_file
    if not file.exists():
        run.output.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(identity, indent=2, sort_keys=True), encoding="utf-8")
        partial.replace(file)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [key for key in sorted(before | identity) if before.get(key) != identity.get(key)]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)!r} and is {identity.get(key)!r}" for key in changed)
        raise TrainingError(
            f"{run.output} holds another training: {differences}. "
            "Take that back to continue it, or give another output folder."
        )
