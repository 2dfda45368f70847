"""Ratings of conversations by a judge in this process: prompts, the engine's answers, and what they say of a rule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ramo_ray.core.rating import ratings_by_method
from ramo_ray.core.records import Prompt, Rating
from ramo_ray.core.rules import RulePool
from ramo_ray.engines.base import Engine, MissingAnswersError
from ramo_ray.errors import EngineError
from ramo_ray.judging.fitting import Fitted, fit, fit_or_cut
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.settings import JudgeSettings

NO_ANSWER = "the judge gave no answer"


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


class Conversation(NamedTuple):
    """A conversation, and the rules (indices into the pool) that it is to be rated on."""

    prompt: Prompt
    response: str
    rules: Sequence[int]


class Judge:
    """An engine with a pool's prompts.

    Args:
        settings: the judge's.
        tokenizer: of the judge's model.
        pool: the rules.
        engine: what answers.
    """

    def __init__(self, settings: JudgeSettings, tokenizer: Any, pool: RulePool, engine: Engine) -> None:
        self.method = settings.method
        self.fit = fit_or_cut if settings.too_long == "truncate_response" else fit
        self.engine = engine
        self.prompts = JudgePrompts(tokenizer, settings, pool, bare=engine.applies_chat_template)

    def rate(self, asked: Sequence[Conversation]) -> list[Judged]:
        """What becomes of some conversations. All go to the engine at once."""
        context, count = self.engine.context_length, self.prompts.answers.question_tokens
        fitted = [self.fit(self.prompts, one.prompt, one.response, one.rules, context) for one in asked]
        return [
            Judged(answer, own.truncated, len(own.prompts), count(own.prompts))
            for own, answer in zip(fitted, self._answers(fitted), strict=True)
        ]

    def _answers(self, fitted: Sequence[Fitted]) -> list[list[Rating] | Fault]:
        """Ratings, or why there are none, for each conversation's prompts.

        If the engine fails, each conversation goes alone, so that one of them cannot take the others along.
        """
        try:
            rows = iter(self._ratings([prompt for own in fitted for prompt in own.prompts]))
        except EngineError:
            return [_unfit(own) or self._alone(own.prompts) for own in fitted]
        return [_unfit(own) or _together(list(itertools.islice(rows, len(own.prompts)))) for own in fitted]

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


def _unfit(own: Fitted) -> Fault | None:
    return Fault(own.fault, final=True) if own.fault else None


def _together(rows: Sequence[Rating | str]) -> list[Rating] | Fault:
    """A conversation's ratings, or the first reason why one is missing."""
    reason = next((row for row in rows if isinstance(row, str)), None)
    if reason:
        return Fault(f"{NO_ANSWER}: {reason}", final=False)
    return [row for row in rows if not isinstance(row, str)]
