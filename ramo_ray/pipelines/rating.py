"""Rating as a Ray Data stage: groups in, the same groups with each conversation's ratings out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ramo_ray.core.rating import ratings_by_method
from ramo_ray.core.records import Rating
from ramo_ray.core.rules import make_pool
from ramo_ray.engines import build_engine
from ramo_ray.engines.base import MissingAnswersError
from ramo_ray.errors import EngineError
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.actors import Bill, pool_options
from ramo_ray.pipelines.fitting import Fitted, fit, fit_or_cut
from ramo_ray.pipelines.prompts import JudgePrompts
from ramo_ray.pipelines.tables import table
from ramo_ray.settings import JudgeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ramo_ray.engines.base import Engine

Group = dict[str, Any]
NO_ANSWER = "the judge gave no answer"
RATING_FIELDS = ("score", "p_yes", "p_no", "p_irrelevant", "label_mass")


Asked = Literal["all_rules", "picked_rules"]


def rate(groups: Dataset, judge: JudgeSettings, rules: Sequence[str], asked: Asked, meter: Any) -> Dataset:
    """Add a judge's ratings to each conversation of each group.

    Args:
        groups: dataset of `groups`.
        judge: what rates.
        rules: the pool's texts.
        asked: all rules, or of each conversation those that its trios' `rule_ids` name.
        meter: handle of a `Meter`, told of the progress.
    """
    return groups.map_batches(
        RuleJudge,
        fn_constructor_kwargs={
            "settings": judge.model_dump(mode="json"),
            "rules": list(rules),
            "asked": asked,
            "meter": meter,
        },
        batch_format="pyarrow",
        batch_size=judge.batch_size,
        **pool_options(judge.actors),
    )


class RuleJudge:
    """Actor that owns a judge: its tokenizer, its engine (its own, or one that is given) and the pool's prompts."""

    def __init__(
        self, settings: Mapping[str, Any], rules: Sequence[str], asked: Asked, meter: Any, engine: Engine | None = None
    ) -> None:
        judge = JudgeSettings.model_validate(settings)
        self.method = judge.method
        self.fit = fit_or_cut if judge.too_long == "truncate_response" else fit
        path = resolve(judge.model, judge.revision)
        self.pool = make_pool("judge", list(rules), origin="rules")
        self.engine = engine or build_engine(judge, path)
        self.prompts = JudgePrompts(load_tokenizer(path), judge, self.pool, bare=self.engine.applies_chat_template)
        self.bill = Bill()
        self.asked, self.meter = asked, meter

    def __call__(self, batch: pa.Table) -> pa.Table:
        groups = batch.to_pylist()
        started = time.perf_counter()
        jobs = [(group, place, asked) for group in groups for place, asked in enumerate(self._asked(group)) if asked]
        for group in groups:
            for conversation in group["conversations"]:
                _set_ratings(conversation, [], [])
                conversation["truncated"] = False
        fitted = [self._fitted(group, place, asked) for group, place, asked in jobs]
        for (group, place, asked), own, answer in zip(jobs, fitted, self._answers(fitted), strict=True):
            conversation = group["conversations"][place]
            conversation["truncated"] = own.truncated
            if isinstance(answer, str):
                conversation["error"] = answer
                continue
            _set_ratings(conversation, [self.pool.ids[rule] for rule in asked], answer)
            group["calls"] += len(own.prompts)
            group["tokens"] += self.prompts.answers.question_tokens(own.prompts)
        seconds = time.perf_counter() - started
        for group in groups:
            group["seconds"] += seconds / len(groups)
        self.bill.charge(groups[0], self.engine.usage)
        self.meter.add.remote(calls=sum(len(own.prompts) for own in fitted), seconds=seconds)
        return table("groups", groups)

    def _asked(self, group: Group) -> list[list[int]]:
        """Rules that each conversation of the group is asked, by index."""
        if self.asked == "all_rules":
            everything = list(range(len(self.pool)))
            return [[] if conversation["done"] else everything for conversation in group["conversations"]]
        asked: list[set[int]] = [set() for _ in group["conversations"]]
        for trio in group["trios"]:
            for side in (trio["a"], trio["b"]):
                asked[side].update(self.pool.index_of(rule) for rule in trio["rule_ids"] or ())
        return [sorted(rules) for rules in asked]

    def _fitted(self, group: Group, place: int, rules: list[int]) -> Fitted:
        response = group["conversations"][place]["response"]
        return self.fit(self.prompts, group["prompt"], response, rules, self.engine.context_length)

    def _answers(self, fitted: Sequence[Fitted]) -> list[list[Rating] | str]:
        """Ratings, or the reason why there are none, for each conversation's prompts.

        All conversations go to the engine at once. If it fails, each goes alone, so that one of them cannot take
        the others along.
        """
        try:
            rows = iter(self._ratings([prompt for own in fitted for prompt in own.prompts]))
        except EngineError:
            return [own.fault or self._alone(own.prompts) for own in fitted]
        return [own.fault or _together(list(itertools.islice(rows, len(own.prompts)))) for own in fitted]

    def _alone(self, prompts: list[list[int]]) -> list[Rating] | str:
        try:
            return _together(self._ratings(prompts))
        except EngineError as error:
            return f"{NO_ANSWER}: {error}"

    def _ratings(self, prompts: list[list[int]]) -> list[Rating | str]:
        """A rating of each prompt, or the reason why the engine has none."""
        if not prompts:
            return []
        answers, reasons = self.prompts.answers, dict[int, str]()
        try:
            rows = self.engine.label_logprobs(answers.questions(prompts), self.prompts.labels)
        except MissingAnswersError as missing:
            rows = missing.logprobs
            # Of the questions about one prompt, any without an answer leaves it without a rating.
            reasons = {place // len(answers.prefixes): reason for place, reason in missing.reasons.items()}
        known = [place for place in range(len(prompts)) if place not in reasons]
        try:
            ratings = dict(zip(known, ratings_by_method(self.method, answers.logprobs(rows)[known]), strict=True))
        except ValueError as error:
            raise EngineError(str(error)) from None
        return [ratings[place] if place in ratings else reasons[place] for place in range(len(prompts))]


def _together(rows: Sequence[Rating | str]) -> list[Rating] | str:
    """A conversation's ratings, or the first reason why one is missing."""
    reason = next((row for row in rows if isinstance(row, str)), None)
    return f"{NO_ANSWER}: {reason}" if reason else [row for row in rows if not isinstance(row, str)]


def _set_ratings(conversation: dict[str, Any], rule_ids: list[str], ratings: Sequence[Rating]) -> None:
    conversation["rule_ids"] = rule_ids
    for field in RATING_FIELDS:
        conversation[field] = [getattr(rating, field) for rating in ratings]


def rated_rows(group: Group, *, fingerprint: str) -> dict[str, list[dict[str, Any]]]:
    """A group's rows of the tables `failures` (trios that an error has spoilt) and `ratings`."""
    failures = []
    for trio in group["trios"]:
        sides = [group["conversations"][trio[side]] for side in ("a", "b")]
        failures += [
            {"origin": side["conversation_id"], "id": trio["trio_id"], "reason": side["error"]}
            for side in sides
            if side["error"]
        ]
    return {"failures": failures, "ratings": rating_rows(group, fingerprint)}


def rating_rows(group: Group, fingerprint: str) -> list[dict[str, Any]]:
    """A group's rows of the `ratings` table."""
    return [
        {
            "conversation_id": conversation["conversation_id"],
            "rule_ids": conversation["rule_ids"],
            **{field: conversation[field] for field in RATING_FIELDS},
            "truncated": conversation["truncated"],
            "error": conversation["error"],
            "fingerprint": fingerprint,
        }
        for conversation in group["conversations"]
        if conversation["rule_ids"] or conversation["error"]
    ]
