"""Rating as a Ray Data stage: groups in, the same groups with each conversation's ratings out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ramo_ray.core.records import Rating
from ramo_ray.core.rules import make_pool
from ramo_ray.engines import build_engine
from ramo_ray.judging.judge import Conversation, Fault, Judge, Judged
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.actors import Bill, pool_options
from ramo_ray.pipelines.overseer import Lost, Watched
from ramo_ray.pipelines.tables import packed, postponed, unpacked
from ramo_ray.pipelines.telemetry import Telemetry
from ramo_ray.settings import JudgeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ramo_ray.engines.base import Engine

Group = dict[str, Any]
RATING_FIELDS = ("score", "p_yes", "p_no", "p_irrelevant", "label_mass")


Asked = Literal["all_rules", "picked_rules"]
TITLES: dict[Asked, str] = {"all_rules": "rating", "picked_rules": "labelling"}
"""What metrics and progress say of a stage."""


def rate(groups: Dataset, judge: JudgeSettings, rules: Sequence[str], asked: Asked, overseer: Any) -> Dataset:
    """Add a judge's ratings to each conversation of each group.

    Args:
        groups: dataset of `groups`.
        judge: what rates.
        rules: the pool's texts.
        asked: all rules, or of each conversation those that its trios' `rule_ids` name.
        overseer: handle of an `Overseer`.
    """
    return groups.map_batches(
        RuleJudge,
        fn_constructor_kwargs={
            "settings": judge.model_dump(mode="json"),
            "rules": list(rules),
            "asked": asked,
            "overseer": overseer,
        },
        batch_format="pyarrow",
        batch_size=judge.batch_size,
        **pool_options(judge.actors, overseer),
    )


class RuleJudge:
    """Actor that owns a judge: its tokenizer, its engine (its own, or one that is given) and the pool's prompts."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        rules: Sequence[str],
        asked: Asked,
        overseer: Any = None,
        engine: Engine | None = None,
        title: str | None = None,
    ) -> None:
        judge = JudgeSettings.model_validate(settings)
        self.watched = Watched(overseer, way=f"{judge.layout}/{judge.method}")
        path = resolve(judge.model, judge.revision)
        self.pool = make_pool("judge", list(rules), origin="rules")
        self.engine = engine or build_engine(judge, path)
        self.judge = Judge(judge, load_tokenizer(path), self.pool, self.engine)
        self.bill = Bill(self.engine)
        self.asked = asked
        self.telemetry = Telemetry(title or TITLES[asked]) if overseer is not None else None
        self.watched.ready(self.engine.close)

    def __call__(self, batch: pa.Table) -> pa.Table:
        groups = unpacked(batch)
        started = time.perf_counter()
        jobs = [(group, place, asked) for group in groups for place, asked in enumerate(self._asked(group)) if asked]
        for group in groups:
            for conversation in group["conversations"]:
                _set_ratings(conversation, [], [])
                conversation["truncated"] = bool(conversation["truncated"])
        ids = [group["conversations"][place]["conversation_id"] for group, place, _ in jobs]
        # Making the prompts is part of the work: texts can kill a tokenizer, too.
        found = self.watched.through(ids, lambda places: self._judged([jobs[place] for place in places]))
        if found is None:
            return postponed(groups)
        judged = [Judged(Fault(own.reason, True), False, 0, 0) if isinstance(own, Lost) else own for own in found]
        for (group, place, asked), own in zip(jobs, judged, strict=True):
            conversation, rule_ids = group["conversations"][place], [self.pool.ids[rule] for rule in asked]
            conversation["truncated"] = own.truncated
            if isinstance(own.answer, Fault):
                conversation["error"], conversation["final"] = own.answer
                conversation["asked"] = rule_ids
                continue
            _set_ratings(conversation, rule_ids, own.answer)
            group["calls"] += own.calls
            group["tokens"] += own.tokens
        seconds = time.perf_counter() - started
        for group in groups:
            group["seconds"] += seconds / len(groups)
        charged = self.bill.charge(groups[0])
        calls, tokens = sum(own.calls for own in judged), sum(own.tokens for own in judged)
        self.watched.report(calls=calls, seconds=seconds, tokens=tokens, **charged)
        if self.telemetry:
            given = [own.answer for own in judged if isinstance(own.answer, list)]
            self.telemetry.tell(
                calls=calls,
                seconds=seconds,
                tokens=tokens,
                computed=int(charged["computed"]),
                errors=len(judged) - len(given),
                masses=[rating.label_mass for ratings in given for rating in ratings],
            )
        return packed("groups", groups)

    def _asked(self, group: Group) -> list[list[int]]:
        """Rules that each conversation of the group is asked, by index: those that it is not rated on yet."""
        conversations = group["conversations"]
        wanted: list[set[str]] = [
            set(self.pool.ids) if self.asked == "all_rules" and not conversation["done"] else set()
            for conversation in conversations
        ]
        for trio in group["trios"] if self.asked == "picked_rules" else ():
            for side in (trio["a"], trio["b"]):
                wanted[side].update(trio["rule_ids"] or ())
        return [
            sorted(self.pool.index_of(rule) for rule in rules.difference(conversation["known"] or ()))
            for rules, conversation in zip(wanted, conversations, strict=True)
        ]

    def _judged(self, jobs: Sequence[tuple[Group, int, list[int]]]) -> list[Judged]:
        """What becomes of some conversations of some groups."""
        return self.judge.rate(
            [
                Conversation(group["prompt"], group["conversations"][place]["response"], rules)
                for group, place, rules in jobs
            ]
        )


def _set_ratings(conversation: dict[str, Any], rule_ids: list[str], ratings: Sequence[Rating]) -> None:
    conversation["rule_ids"] = rule_ids
    for field in RATING_FIELDS:
        conversation[field] = [getattr(rating, field) for rating in ratings]


def rated_rows(group: Group, *, fingerprint: str) -> dict[str, list[dict[str, Any]]]:
    """A group's rows of the table `ratings`."""
    return {"ratings": rating_rows(group, fingerprint)}


def rating_rows(group: Group, fingerprint: str) -> list[dict[str, Any]]:
    """A group's rows of the `ratings` table."""
    return [
        {
            "conversation_id": conversation["conversation_id"],
            "rule_ids": conversation["rule_ids"],
            **{field: conversation[field] for field in RATING_FIELDS},
            "truncated": conversation["truncated"],
            "error": conversation["error"],
            "final": conversation["final"],
            "asked": conversation["asked"],
            "fingerprint": fingerprint,
        }
        for conversation in group["conversations"]
        if conversation["rule_ids"] or conversation["error"]
    ]
