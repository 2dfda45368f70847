"""Critical rules of trios whose conversations were rated on the whole pool: the Rule Adapter's ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ramo_ray.core.prompts import last_human_turn
from ramo_ray.core.selection import select
from ramo_ray.engines.embedder import Embedder
from ramo_ray.errors import FingerprintError, SourceError
from ramo_ray.models.resolve import resolve
from ramo_ray.pipelines.actors import SMALL, pool_options
from ramo_ray.pipelines.tables import packed, unpacked
from ramo_ray.settings import EmbedderSettings, SelectionSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Group = dict[str, Any]


def find_critical(
    groups: Dataset, ratings: str, embedder: EmbedderSettings, rules: Sequence[str], rule_ids: Sequence[str]
) -> Dataset:
    """Add to each trio its relevance (to the pool's rules), and to each conversation its scores.

    Args:
        groups: dataset of `groups`.
        ratings: folder of the `ratings` table.
        embedder: what measures sim(x, u_i) of equation 12.
        rules: the pool's texts; `rule_ids` their ids.
    """
    rated = groups.map_batches(
        partial(_attach_ratings, folder=ratings, rule_ids=list(rule_ids)), batch_format="pyarrow", **SMALL
    )
    return add_relevance(rated, embedder, rules)


def add_relevance(groups: Dataset, embedder: EmbedderSettings, rules: Sequence[str]) -> Dataset:
    """Add to each trio its relevance: sim(x, u_i) of equation 12 to each rule's text."""
    return groups.map_batches(
        RelevanceScorer,
        fn_constructor_kwargs={"settings": embedder.model_dump(mode="json"), "rules": list(rules)},
        batch_format="pyarrow",
        batch_size=embedder.batch_size,
        **pool_options(embedder.actors),
    )


class RelevanceScorer:
    """Actor that owns an embedder: cosines between each prompt's last human turn and every rule's whole text."""

    def __init__(self, settings: Mapping[str, Any], rules: Sequence[str]) -> None:
        embedder = EmbedderSettings.model_validate(settings)
        self.embedder = Embedder(resolve(embedder.model), batch_size=embedder.batch_size, threads=embedder.threads)
        self.rules = self.embedder.embed(list(rules))

    def __call__(self, batch: pa.Table) -> pa.Table:
        groups = unpacked(batch)
        prompts = self.embedder.embed([last_human_turn(group["prompt"]) for group in groups])
        for group, cosines in zip(groups, prompts @ self.rules.T, strict=True):
            for trio in group["trios"]:
                trio["relevance"] = cosines.tolist()
        return packed("groups", groups)


def _attach_ratings(batch: pa.Table, *, folder: str, rule_ids: Sequence[str]) -> pa.Table:
    groups = unpacked(batch)
    ids = [c["conversation_id"] for group in groups for c in group["conversations"]]
    found = read_scores(folder, ids)
    for group in groups:
        for conversation in group["conversations"]:
            scores = found.get(conversation["conversation_id"], {})
            complete = all(rule in scores for rule in rule_ids)
            conversation["rule_ids"] = list(rule_ids) if complete else []
            conversation["score"] = [scores[rule] for rule in rule_ids] if complete else []
            conversation["error"] = None if complete else "not rated on every rule of the pool"
    return packed("groups", groups)


def read_scores(folder: str, conversation_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores by conversation and rule id; a conversation's cells may lie in several rows."""
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    data = pads.dataset(sorted(map(str, Path(folder).glob("*.parquet"))), format="parquet")
    rows = data.to_table(
        columns=["conversation_id", "rule_ids", "score"],
        filter=pc.field("conversation_id").isin(list(conversation_ids)),
    )
    scores: dict[str, dict[str, float]] = {}
    for row in rows.to_pylist():
        scores.setdefault(row["conversation_id"], {}).update(zip(row["rule_ids"], row["score"], strict=True))
    return scores


def ratings_fingerprint(folder: str) -> str:
    """The one fingerprint of a folder of ratings.

    Raises:
        SourceError: there are none.
        FingerprintError: ratings of several judges, templates or layouts lie there together.
    """
    import pyarrow.parquet as pq

    files = sorted(Path(folder).glob("*.parquet"))
    found = {
        f for file in files for f in pq.read_table(file, columns=["fingerprint"])["fingerprint"].unique().to_pylist()
    }
    if not found:
        raise SourceError(f"{folder}: holds no ratings. Run jobs.rate first, or name its run folder with `run`.")
    if len(found) > 1:
        raise FingerprintError(f"{folder}: holds ratings of {len(found)} different judges or templates; keep one kind.")
    return str(found.pop())


def critical_rows(group: Group, *, selection: SelectionSettings) -> dict[str, list[dict[str, Any]]]:
    """A group's rows of the tables `failures` and `critical`."""
    failures, rows = [], []
    for trio in group["trios"]:
        sides = [group["conversations"][trio[side]] for side in ("a", "b")]
        if error := next((side["error"] for side in sides if side["error"]), None):
            failures.append({"origin": "train_adapter", "id": trio["trio_id"], "reason": error, "final": True})
        else:
            rows.append(_critical(group, trio, sides, selection))
    return {"failures": failures, "critical": rows}


def _critical(
    group: Group, trio: Mapping[str, Any], sides: Sequence[Mapping[str, Any]], selection: SelectionSettings
) -> dict[str, Any]:
    scores_a, scores_b = (np.array([side["score"]], dtype=np.float64) for side in sides)
    relevance = np.array([trio["relevance"]], dtype=np.float64)
    (critical,) = select(scores_a, scores_b, relevance, settings=selection)
    return {
        "trio_id": trio["trio_id"],
        "split": group["split"],
        "prompt": group["prompt"],
        "response_a": sides[0]["response"],
        "response_b": sides[1]["response"],
        "label": trio["label"],
        "critical": critical.tolist(),
        "scores_a": scores_a[0].tolist(),
        "scores_b": scores_b[0].tolist(),
        "relevance": relevance[0].tolist(),
    }
