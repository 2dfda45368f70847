"""A reward model on held-out pairs: how often it prefers what was chosen, and how it agrees with humans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from jobs.display import heading, progress, summary
from jobs.inputs import check_model, earlier, require_rows
from jobs.session import ray_session
from jobs.stage import Stage, StageConfig, locate, open_stage, write_json
from jobs.train_reward import read_preferences
from ramo_ray.config import run
from ramo_ray.core.metrics import accuracy_interval, agreement
from ramo_ray.settings import RewardSettings, Split

Row = dict[str, Any]


class EvaluateRewardConfig(StageConfig):
    job: ClassVar[str] = "evaluate_reward"
    preferences: str = ""
    """Folder of the preferences table. Empty: what label wrote in `run`."""
    model: str = ""
    """Folder of the reward model. Empty: what train_reward wrote in `run`."""
    run: str = ""
    """Output of the pipeline whose earlier stages are read."""
    evaluated: Annotated[tuple[Split, ...], Field(min_length=1)] = ("reward_test",)
    """Splits whose pairs are scored."""
    reward: RewardSettings = RewardSettings()


def check(config: EvaluateRewardConfig) -> None:
    """Refuse, before anything starts, a model that is given and cannot be used."""
    if config.model:
        check_model(str(locate(config, "model", config.model)), chat=True)


def main(config: EvaluateRewardConfig) -> list[str]:
    """Measure pair accuracy, and the agreement of labels and rewards with human labels where the source has them."""
    with open_stage(config) as stage:
        if not stage.finished:
            _evaluate(config, stage)
        scores = stage.manifest["scores"]
        summary(
            f"scores in {stage.folder / 'scores.json'}",
            {name: _shown(value) for name, value in scores.items() if value is not None},
        )
    return [f"open {stage.folder.parent / 'report.html'}" if config.run else f"ramo report {stage.folder}"]


def _evaluate(config: EvaluateRewardConfig, stage: Stage) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    heading("Evaluation")
    check(config)
    folder = earlier(config, "preferences", config.preferences, config.run, "label/data/preferences")
    model = earlier(config, "model", config.model, config.run, "train_reward/model")
    rows = read_preferences(folder)
    tested = [row for row in rows if row["split"] in config.evaluated]
    require_rows(len(tested), f"pair of {', '.join(config.evaluated)}", folder)
    scored = _score(config, str(model), tested)
    stage.data.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(scored), stage.data / "rewards.parquet")
    known = [row for row in scored if row["reward_chosen"] is not None and row["reward_rejected"] is not None]
    require_rows(len(known), "pair that fits reward.max_length", folder)
    reason = f"too long (reward.max_length = {config.reward.max_length}), or of roles that the model's template refuses"
    kept = {row["trio_id"] for row in known}
    bad = [
        {"origin": str(folder), "id": row["trio_id"], "reason": reason} for row in scored if row["trio_id"] not in kept
    ]
    counts = stage.counts(rows_in=len(rows), rows_out=len(known), other_split=len(rows) - len(tested), bad=bad)
    scores = reward_scores(known, rows, config.seed)
    write_json(stage.folder / "scores.json", scores)
    stage.finish(counts=counts, scores=scores, fingerprint=rows[0]["fingerprint"])


def _score(config: EvaluateRewardConfig, model: str, rows: Sequence[Row]) -> list[Row]:
    import pyarrow as pa
    import ray

    from ramo_ray.pipelines.rewards import score_pairs
    from ramo_ray.pipelines.tables import schema

    with ray_session(config.ray), progress("scoring", None, lambda: (0, f"{len(rows)} pairs")):
        pairs = ray.data.from_arrow(pa.Table.from_pylist(list(rows), schema=schema("preferences")))
        keep = ["trio_id", "chosen_is", "label", "tie", "margin", "reward_chosen", "reward_rejected"]
        scored: list[Row] = score_pairs(pairs, config.reward, model).select_columns(keep).take_all()
    return sorted(scored, key=lambda row: str(row["trio_id"]))


def reward_scores(scored: Sequence[Row], labelled: Sequence[Row], seed: int) -> dict[str, Any]:
    """The figures of `scores.json`.

    Args:
        scored: test pairs with `reward_chosen` and `reward_rejected`. An equal reward counts as wrong.
        labelled: all preferences, for the agreement of their labels with humans.
    """
    prefers = [row["reward_chosen"] > row["reward_rejected"] for row in scored]
    labels = [_side(row["chosen_is"]) for row in labelled]
    rewarded = [
        _side(row["chosen_is"]) if right else 1 - _side(row["chosen_is"])
        for row, right in zip(scored, prefers, strict=True)
    ]
    return {
        "pair_accuracy": _estimate(prefers, seed),
        "label_agreement": _agreement(labels, [row["label"] for row in labelled], seed),
        "reward_agreement": _agreement(rewarded, [row["label"] for row in scored], seed),
        "ties": sum(bool(row["tie"]) for row in labelled),
        "chosen_a": labels.count(0),
        "chosen_b": labels.count(1),
    }


def _side(chosen_is: str) -> int:
    return {"a": 0, "b": 1}[chosen_is]


def _estimate(correct: Sequence[bool], seed: int) -> dict[str, float]:
    interval = accuracy_interval(correct, seed)
    return {"value": interval.accuracy, "low": interval.low, "high": interval.high, "count": len(correct)}


def _agreement(labels: Sequence[int], human: Sequence[int | None], seed: int) -> dict[str, float] | None:
    """Agreement with human labels as an estimate; None where the source has none."""
    agreeing, compared = agreement(labels, human)
    if compared == 0:
        return None
    return _estimate([True] * agreeing + [False] * (compared - agreeing), seed)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f}  [{value['low']:.3f}, {value['high']:.3f}]  of {value['count']}"
    return str(value)


if __name__ == "__main__":
    run(main)
