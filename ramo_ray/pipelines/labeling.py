"""Labelling: the Rule Adapter picks the rules of each trio, the judge rates those, the higher mean is chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ramo_ray.core.preference import aggregate, prefer
from ramo_ray.judging.judge import Fault
from ramo_ray.models.adapter import RuleAdapter, adapter_token_ids
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.overseer import Lost, Watched
from ramo_ray.pipelines.rating import rating_rows
from ramo_ray.pipelines.tables import packed, postponed, unpacked
from ramo_ray.settings import AdapterSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Group = dict[str, Any]
LABELER = "rule_adapter"


def pick_rules(
    groups: Dataset, adapter: AdapterSettings, model: str, rule_ids: Sequence[str], r: int, overseer: Any
) -> Dataset:
    """Add to each trio the r rules that the adapter at `model` (a folder) holds most critical."""
    return groups.map_batches(
        RulePicker,
        fn_constructor_kwargs={
            "settings": adapter.model_dump(mode="json"),
            "model": model,
            "rule_ids": list(rule_ids),
            "r": r,
            "overseer": overseer,
        },
        batch_format="pyarrow",
        batch_size=adapter.batch_size,
        **pool_options(adapter.actors, overseer),
    )


class RulePicker:
    """Actor that owns a Rule Adapter."""

    def __init__(
        self, settings: Mapping[str, Any], model: str, rule_ids: Sequence[str], r: int, overseer: Any = None
    ) -> None:
        self.watched = Watched(overseer, aside=True)
        adapter = AdapterSettings.model_validate(settings)
        path = Path(model)
        self.tokenizer = load_tokenizer(path)
        self.adapter = RuleAdapter(path, rule_ids, dtype=adapter.dtype, threads=adapter.threads or os.cpu_count())
        self.rule_ids, self.r = list(rule_ids), r
        self.max_length = min(adapter.max_length, self.adapter.context_length)
        self.watched.ready()

    def __call__(self, batch: pa.Table) -> pa.Table:
        groups, started = unpacked(batch), time.perf_counter()
        jobs = [(group, trio) for group in groups for trio in group["trios"]]
        # Tokens too: texts can kill a tokenizer.
        picked = self.watched.through(
            [trio["trio_id"] for _, trio in jobs], lambda places: self._picked([jobs[place] for place in places])
        )
        if picked is None:
            return postponed(groups)
        for (_, trio), found in zip(jobs, picked, strict=True):
            if isinstance(found, Lost):
                trio["error"] = found.reason
            elif isinstance(found, str):
                trio["error"] = found
            else:
                trio["rule_ids"], trio["probability"] = found
        seconds = time.perf_counter() - started
        for group in groups:
            group["adapter_seconds"] += seconds / len(groups)
        return packed("groups", groups)

    def _fault(self, ids: Sequence[int]) -> str | None:
        if len(ids) <= self.max_length:
            return None
        return f"too long for the adapter: more than adapter.max_length = {self.max_length:,} tokens"

    def _picked(self, jobs: Sequence[tuple[Group, Mapping[str, Any]]]) -> list[tuple[list[str], list[float]] | str]:
        """The r rules of each trio and the adapter's probabilities for them, or why there are none."""
        texts = [self._token_ids(group, trio) for group, trio in jobs]
        faults = [self._fault(ids) for ids in texts]
        fitting = [ids for ids, fault in zip(texts, faults, strict=True) if not fault]
        rules = iter(self._rules(fitting) if fitting else ())
        return [fault or next(rules) for fault in faults]

    def _rules(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[str], list[float]]]:
        for rules, probabilities in self.adapter.pick(texts, self.r):
            yield [self.rule_ids[place] for place in rules], probabilities

    def _token_ids(self, group: Group, trio: Mapping[str, Any]) -> list[int]:
        sides = (group["conversations"][trio[side]]["response"] for side in ("a", "b"))
        return adapter_token_ids(self.tokenizer, group["prompt"], *sides)


def trios_as_groups(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the `critical` table as `groups` of one trio each, for `pick_rules`."""
    return packed("groups", [_as_group(row) for row in rows])


def _as_group(row: Mapping[str, Any]) -> Group:
    sides = [{"response": row["response_a"]}, {"response": row["response_b"]}]
    return {
        "prompt": row["prompt"],
        "conversations": sides,
        "trios": [{"trio_id": row["trio_id"], "a": 0, "b": 1}],
        "adapter_seconds": 0.0,
    }


def label_rows(
    group: Group, *, tie_tolerance: float, fingerprint: str, judge_fingerprint: str
) -> dict[str, list[dict[str, Any]]]:
    """A rated group's rows of the tables `ratings`, `failures` and `preferences`."""
    failures, preferences = [], []
    for trio in group["trios"]:
        fault = _fault(group, trio)
        if fault:
            failures.append({"origin": "label", "id": trio["trio_id"], "reason": fault.reason, "final": fault.final})
        else:
            preferences.append(_preference(group, trio, tie_tolerance) | {"fingerprint": fingerprint})
    return {
        "ratings": rating_rows(group, judge_fingerprint),
        "failures": failures,
        "preferences": preferences,
    }


def _fault(group: Group, trio: Mapping[str, Any]) -> Fault | None:
    if trio["error"]:
        return Fault(trio["error"], final=True)
    sides = (group["conversations"][trio[side]] for side in ("a", "b"))
    return next((Fault(side["error"], side["final"]) for side in sides if side["error"]), None)


def _preference(group: Group, trio: Mapping[str, Any], tie_tolerance: float) -> dict[str, Any]:
    sides = [group["conversations"][trio[side]] for side in ("a", "b")]
    scores = [_scores(side, trio["rule_ids"]) for side in sides]
    everything = [np.arange(len(trio["rule_ids"]))] * 2
    phi_a, phi_b = aggregate(np.stack(scores), everything).tolist()
    chosen_is, margin, tie = prefer(phi_a, phi_b, tie_tolerance)
    first = 0 if chosen_is == "a" else 1
    chosen, rejected = ([{"role": "assistant", "content": sides[place]["response"]}] for place in (first, 1 - first))
    return {
        "trio_id": trio["trio_id"],
        "prompt": group["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_is": chosen_is,
        "rule_ids": trio["rule_ids"],
        "scores_chosen": scores[first].tolist(),
        "scores_rejected": scores[1 - first].tolist(),
        "margin": margin,
        "tie": tie,
        "truncated": any(side["truncated"] for side in sides),
        "label": trio["label"],
        "split": group["split"],
        "labeler": LABELER,
    }


def _scores(conversation: Mapping[str, Any], rule_ids: Sequence[str]) -> np.ndarray:
    by_rule = dict(zip(conversation["known"] or (), conversation["known_score"] or (), strict=True))
    by_rule |= dict(zip(conversation["rule_ids"], conversation["score"], strict=True))
    return np.array([by_rule[rule] for rule in rule_ids], dtype=np.float64)
