"""Ratings to a Rule Adapter: select each trio's critical rules, learn them, measure on trios held out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.display import heading, summary
from jobs.inputs import TrioStageConfig, check_model, earlier, open_source, require_rows, rule_pool
from jobs.learning import learn
from jobs.session import ray_session
from jobs.stage import Stage, open_stage, write_json
from ramo_ray.config import run
from ramo_ray.core.rules import RulePool
from ramo_ray.settings import (
    AdapterSettings,
    EmbedderSettings,
    SelectionSettings,
    Split,
    TrainingSettings,
)

if TYPE_CHECKING:
    from jobs.flow import Result
    from ramo_ray.pipelines.store import PartStore

TABLES = ("failures", "critical")
SPLITS: tuple[Split, ...] = ("adapter_train", "adapter_test")


class TrainAdapterConfig(TrioStageConfig):
    job: ClassVar[str] = "train_adapter"
    ratings: str = ""
    """Folder of the ratings table. Empty: what rate wrote in `run`."""
    embedder: EmbedderSettings = EmbedderSettings()
    selection: SelectionSettings = SelectionSettings()
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    adapter: AdapterSettings = AdapterSettings()


def check(config: TrainAdapterConfig) -> RulePool:
    """Refuse, before anything starts, a pool, a rule budget or a model that cannot be used; give the pool."""
    check_model(config.embedder.model)
    check_model(config.training.model, config.training.revision)
    return rule_pool(config, config.selection.r)


def main(config: TrainAdapterConfig) -> list[str]:
    """Train the Rule Adapter on the critical rules of rated trios."""
    with open_stage(config) as stage:
        if not stage.finished:
            _train(config, stage)
        counts, scores = stage.manifest["counts"], stage.manifest["scores"]
        summary(
            f"Rule Adapter in {stage.folder / 'model'}",
            {
                "trios trained on": counts["trained"],
                "trios held out": counts["held_out"],
                **{f"F1 at r: {name}": scores[name]["f1"] for name in scores},
            },
        )
    return [stage.next_job("label", model=stage.folder / "model", trios=config.trios)]


def _train(config: TrainAdapterConfig, stage: Stage) -> None:
    from ramo_ray.pipelines.examples import write_adapter_examples
    from ramo_ray.pipelines.store import PartStore

    heading("Rule Adapter")
    pool = check(config)
    with ray_session(config.ray):
        store = PartStore(str(stage.data), TABLES)
        selected = _select(config, stage, store, pool)
        rows = sorted(store.read("critical").to_pylist(), key=lambda row: str(row["trio_id"]))
        # Over a threshold a trio may have no critical rule: there is nothing to learn from it, or to find in it.
        with_rules = [row for row in rows if row["critical"]]
        train, held_out = ([row for row in with_rules if row["split"] == split] for split in SPLITS)
        require_rows(len(train), "trio with a critical rule to train on", stage.data)
        require_rows(len(held_out), "held-out trio with a critical rule", stage.data)
        examples, final = learn(
            stage,
            task="adapter",
            settings=config.training,
            seed=config.seed,
            write=partial(write_adapter_examples, rows=train),
            rule_ids=pool.ids,
            r=config.selection.r,
            details={"rules": len(pool), "trios": len(train), "gamma": config.selection.gamma},
        )
        predicted = _predict(config, stage.folder / "model", held_out, pool)
    scores = _scores(predicted, train, held_out, pool, config.selection.r)
    write_json(stage.folder / "scores.json", scores)
    too_long = {"origin": "train_adapter", "id": None, "reason": "too long: more tokens than training.max_length"}
    counts = stage.counts(
        rows_in=selected.grouped.rows,
        rows_out=len(rows) - examples.too_long,
        other_split=selected.grouped.others(SPLITS),
        bad=[*selected.bad(), *([too_long] * examples.too_long)],
    )
    counts |= {
        "trained": examples.rows,
        "held_out": len(held_out),
        "without_critical_rules": len(rows) - len(with_rules),
    }
    stage.finish(
        counts=counts,
        scores=scores,
        training=final,
        tokens=examples.tokens,
        r=config.selection.r,
        rules=pool.fingerprint,
    )


def _select(config: TrainAdapterConfig, stage: Stage, store: PartStore, pool: RulePool) -> Result:
    """Select the critical rules of the adapter's splits into the `critical` table."""
    from jobs.flow import Work, run_groups
    from ramo_ray.pipelines import critical
    from ramo_ray.pipelines.progress import Goal

    ratings = earlier(config, "ratings", config.ratings, config.run, "rate/data/ratings")
    judged_by = critical.ratings_fingerprint(str(ratings))
    stage.claim(store, {"ratings": judged_by, "rules": pool.fingerprint})
    stage.update(ratings_fingerprint=judged_by)
    block = config.embedder.batch_size
    return run_groups(
        Work(
            title="selecting",
            source=open_source(config),
            shares=config.splits,
            wanted=SPLITS,
            store=store,
            goal=Goal("trios", "critical"),
            block=block,
            part=config.storage.part_groups or block,
            through=lambda groups, _: critical.find_critical(
                groups, str(ratings), config.embedder, pool.texts, pool.ids
            ),
            convert=partial(critical.critical_rows, selection=config.selection),
            actors=config.embedder.actors,
            tell=stage.tell,
            spent=stage.spent,
        )
    )


def _predict(
    config: TrainAdapterConfig, model: Path, rows: Sequence[dict[str, Any]], pool: RulePool
) -> list[list[int]]:
    """The adapter's r rules for each row, by the same actors that label; a row too long for it gets none."""
    import ray

    from ramo_ray.pipelines import labeling
    from ramo_ray.pipelines.tables import unpacked

    groups = ray.data.from_arrow(labeling.trios_as_groups(rows))
    picked = labeling.pick_rules(groups, config.adapter, str(model), pool.ids, config.selection.r, None)
    found = (group for batch in picked.iter_batches(batch_format="pyarrow") for group in unpacked(batch))
    by_trio = {trio["trio_id"]: trio["rule_ids"] or [] for group in found for trio in group["trios"]}
    return [[pool.index_of(rule) for rule in by_trio[row["trio_id"]]] for row in rows]


def _scores(
    predicted: list[list[int]],
    train: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    pool: RulePool,
    r: int,
) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of the adapter and of two baselines: the most frequent rules, and random ones."""
    from ramo_ray.core.metrics import SetScores, most_frequent, random_expected, set_scores

    true = [row["critical"] for row in held_out]
    frequent = most_frequent([row["critical"] for row in train], rules=len(pool), r=r)
    return {
        "adapter": (set_scores(predicted, true) if any(predicted) else SetScores(0.0, 0.0, 0.0))._asdict(),
        "most frequent rules": set_scores([frequent] * len(true), true)._asdict(),
        "random rules": random_expected(true, rules=len(pool), r=r)._asdict(),
    }


if __name__ == "__main__":
    run(main)
