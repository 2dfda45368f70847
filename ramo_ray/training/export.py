"""A finished training as an ordinary Hugging Face folder: weights, config, tokenizer with chat template, model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ramo_ray.errors import TrainingError
from ramo_ray.models.classifier import quiet
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.step_log import Row
from ramo_ray.training.card import model_card
from ramo_ray.training.run import TrainingRun


def export(model: Any, weights: dict[str, Any], *, base: Path, run: TrainingRun, last: Row) -> None:
    """Write `<output>/model`, whole or not at all. Raises `TrainingError` if a weight is not finite."""
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise TrainingError(
            f"{run.output}: after step {last['step']} weights are not finite ({', '.join(bad[:3])}), so nothing is "
            "exported. Lower training.learning_rate, or train in float32, in a new output folder."
        )
    partial = run.model_folder.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial, state_dict=weights)
    load_tokenizer(base).save_pretrained(partial)
    (partial / "README.md").write_text(model_card(run, last), encoding="utf-8")
    partial.replace(run.model_folder)
