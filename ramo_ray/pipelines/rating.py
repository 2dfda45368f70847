"""Rating as a Ray Data stage: groups in, the same groups with each conversation's ratings out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
from ramo_ray.pipelines.overseer import Lost, Watched
from ramo_ray.pipelines.prompts import JudgePrompts
from ramo_ray.pipelines.tables import packed, postponed, unpacked
from ramo_ray.pipelines.telemetry import Telemetry
from ramo_ray.settings import JudgeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ramo_ray.engines.base import Engine

Group = dict[str, Any]
NO_ANSWER = "the judge gave no answer"
RATING_FIELDS = ("score", "p_yes", "p_no", "p_irrelevant", "label_mass")


Asked = Literal["all_rules", "picked_rules"]
TITLES: dict[Asked, str] = {"all_rules": "rating", "picked_rules": "labelling"}
"""What metrics and progress say of a stage."""


class Fault(NamedTuple):
    """Why a conversation has no ratings, and whether another try could not change that."""

    reason: str
    final: bool


class Judged(NamedTuple):
    """What became of a conversation; whether the judge read it in part; the calls and prompt tokens that it took."""

    answer: list[Rating] | Fault
    truncated: bool
    calls: int
    tokens: int


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
        self.method = judge.method
        self.fit = fit_or_cut if judge.too_long == "truncate_response" else fit
        path = resolve(judge.model, judge.revision)
        self.pool = make_pool("judge", list(rules), origin="rules")
        self.engine = engine or build_engine(judge, path)
        self.prompts = JudgePrompts(load_tokenizer(path), judge, self.pool, bare=self.engine.applies_chat_template)
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

    def _fitted(self, group: Group, place: int, rules: list[int]) -> Fitted:
        response = group["conversations"][place]["response"]
        return self.fit(self.prompts, group["prompt"], response, rules, self.engine.context_length)

    def _judged(self, jobs: Sequence[tuple[Group, int, list[int]]]) -> list[Judged]:
        """What becomes of some conversations of some groups."""
        fitted = [self._fitted(group, place, asked) for group, place, asked in jobs]
        count = self.prompts.answers.question_tokens
        return [
            Judged(answer, own.truncated, len(own.prompts), count(own.prompts))
            for own, answer in zip(fitted, self._answers(fitted), strict=True)
        ]

    def _answers(self, fitted: Sequence[Fitted]) -> list[list[Rating] | Fault]:
        """Ratings, or why there are none, for each conversation's prompts.

        All conversations go to the engine at once. If it fails, each goes alone, so that one of them cannot take
        the others along.
        """
        try:
            rows = iter(self._ratings([prompt for own in fitted for prompt in own.prompts]))
        except EngineError:
            return [self._unfit(own) or self._alone(own.prompts) for own in fitted]
        return [self._unfit(own) or _together(list(itertools.islice(rows, len(own.prompts)))) for own in fitted]

    def _unfit(self, own: Fitted) -> Fault | None:
        return Fault(own.fault, final=True) if own.fault else None

    def _alone(self, prompts: list[list[int]]) -> list[Rating] | Fault:
        try:
            return _together(self._ratings(prompts))
        except EngineError as error:
            return Fault(f"{NO_ANSWER}: {error}", final=False)

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


def _together(rows: Sequence[Rating | str]) -> list[Rating] | Fault:
    """A conversation's ratings, or the first reason why one is missing."""
    reason = next((row for row in rows if isinstance(row, str)), None)
    if reason:
        return Fault(f"{NO_ANSWER}: {reason}", final=False)
    return [row for row in rows if not isinstance(row, str)]


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
