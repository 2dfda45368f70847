"""Preferences to a reward model (equations 5 to 7)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from jobs.display import heading, summary
from jobs.inputs import check_model, earlier, require_rows
from jobs.learning import learn
from jobs.session import ray_session
from jobs.stage import Stage, StageConfig, open_stage
from ramo_ray.config import run
from ramo_ray.errors import FingerprintError
from ramo_ray.settings import TrainingSettings


class TrainRewardConfig(StageConfig):
    job: ClassVar[str] = "train_reward"
    preferences: str = ""
    """Folder of the preferences table. Empty: what label wrote in `run`."""
    run: str = ""
    """Output of the pipeline whose earlier stages are read."""
    ties: Literal["drop", "keep"] = "drop"
    """Whether pairs whose margin is within selection.tie_tolerance are trained on."""
    training: TrainingSettings = Field(default_factory=TrainingSettings)


def check(config: TrainRewardConfig) -> None:
    """Refuse, before anything starts, a model that cannot be used."""
    check_model(config.training.model, config.training.revision, chat=True)


def main(config: TrainRewardConfig) -> list[str]:
    """Train a Bradley-Terry reward model on labelled pairs."""
    with open_stage(config) as stage:
        if not stage.finished:
            _train(config, stage)
        counts, final = stage.manifest["counts"], stage.manifest["training"]
        summary(
            f"reward model in {stage.folder / 'model'}",
            {"pairs trained on": counts["rows_out"], "last loss": final["loss"], "last accuracy": final["accuracy"]},
        )
    return [stage.next_job("evaluate_reward", model=stage.folder / "model", preferences=config.preferences)]


def _train(config: TrainRewardConfig, stage: Stage) -> None:
    from ramo_ray.pipelines.examples import write_reward_examples

    heading("Reward model")
    check(config)
    folder = earlier(config, "preferences", config.preferences, config.run, "label/data/preferences")
    rows = read_preferences(folder)
    train = [row for row in rows if row["split"] == "reward_train"]
    ties = [row for row in train if row["tie"]] if config.ties == "drop" else []
    used = [row for row in train if not (row["tie"] and config.ties == "drop")]
    used.sort(key=lambda row: str(row["trio_id"]))
    require_rows(len(used), "pair of the split reward_train that is no tie", folder)
    with ray_session(config.ray):
        examples, final = learn(
            stage,
            task="reward",
            settings=config.training,
            seed=config.seed,
            write=partial(write_reward_examples, rows=used),
            details={"pairs": len(used), "ties": f"{len(ties)} dropped" if ties else config.ties},
        )
    too_long = {"origin": str(folder), "id": None, "reason": "too long: more tokens than training.max_length"}
    refused = too_long | {"reason": "the model's chat template does not take its order of roles"}
    counts = stage.counts(
        rows_in=len(rows) - len(ties),
        rows_out=examples.rows,
        other_split=len(rows) - len(train),
        bad=[*([too_long] * examples.too_long), *([refused] * examples.refused)],
    )
    counts["ties_dropped"] = len(ties)
    stage.finish(counts=counts, training=final, tokens=examples.tokens, fingerprint=rows[0]["fingerprint"])


def read_preferences(folder: Path) -> list[dict[str, Any]]:
    """All preferences of a folder.

    Raises:
        SourceError: there are none. FingerprintError: they were labelled in different ways.
    """
    import pyarrow.dataset as pads

    files = sorted(str(file) for file in folder.glob("*.parquet"))
    rows: list[dict[str, Any]] = pads.dataset(files, format="parquet").to_table().to_pylist() if files else []
    require_rows(len(rows), "preference", folder)
    kinds = {row["fingerprint"] for row in rows}
    if len(kinds) > 1:
        raise FingerprintError(f"{folder}: holds preferences of {len(kinds)} different labellers; keep one kind.")
    return rows


if __name__ == "__main__":
    run(main)
