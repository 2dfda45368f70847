"""The judge's prompts as token ids: a conversation's half and a rule's half, each tokenised once, joined in between."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from ramo_ray.core.candidates import Candidates, plan_candidates
from ramo_ray.core.prompts import RatingTemplate, has_system
from ramo_ray.core.rating import NUMBERS
from ramo_ray.core.records import Message, Prompt, content_hash, fingerprint
from ramo_ray.core.rules import RulePool
from ramo_ray.errors import ConfigError, ModelError
from ramo_ray.models.templates import answer_token_ids, chat_frame, encode_text, label_token_ids
from ramo_ray.settings import JudgeSettings

logger = logging.getLogger(__name__)

_PROBES = ("How do I boil an egg?", "\n\nWhy?", "  (a) eggs", "“Eggs”: 7?", "7 eggs", "'s eggs", "é🥚")
"""What a conversation may begin with: a word, white space, marks, digits."""
_PROBE_ANSWER = "Put it into boiling water for eight minutes."


class JudgePrompts:
    """Builds the token ids of (conversation, rule) prompts for one judge.

    Attributes:
        answers: what the judge chooses from, by `judge.method`, and how its probabilities are asked for.
        labels: the tokens that are asked for; the first tokens of the label words, where words are asked for.
        exact_seam: whether the halves' ids, joined, are the ids of the whole text, for every rule of the pool; without
            a system message (False) and with one (True), which moves the seam. Where a tokenizer merges across the
            seam, whole prompts are tokenised instead, with a warning: slower, never different.

    With `bare`, prompts are the text's ids alone: the engine puts its own chat template around them.
    """

    def __init__(self, tokenizer: Any, settings: JudgeSettings, pool: RulePool, *, bare: bool = False) -> None:
        if bare:
            _check_bare(settings)
        self.tokenizer, self.pool = tokenizer, pool
        self.template = RatingTemplate(settings.layout, settings.rule_prefix, settings.method)
        self.head, self.foot = ([], []) if bare else _frame(tokenizer, chat=settings.chat_template)
        if settings.too_long == "truncate_response" and not tokenizer.is_fast:
            raise ModelError(
                f"{settings.model}: judge.too_long = truncate_response cuts between tokens, and only a fast tokenizer "
                "says where these end. Set judge.too_long to quarantine, or use the model's fast tokenizer."
            )
        self.answers = _candidates(tokenizer, settings)
        self.labels = list(self.answers.tokens)
        self._rule_ids = lru_cache(maxsize=None)(self._encode_rule)
        self.exact_seam = {system: self._is_exact(system) for system in (False, True)}
        if not all(self.exact_seam.values()):
            _warn_of_seam(settings.model, settings.layout, len(pool), also_without_system=not self.exact_seam[False])

    def ids(self, prompt: Prompt, response: str, rules: Sequence[int]) -> list[list[int]]:
        """Token ids of the prompts that ask about these rules (indices into the pool), in their order."""
        if self.exact_seam[has_system(prompt)]:
            return self._halves(prompt, response, rules)
        return [self._whole(prompt, response, rule) for rule in rules]

    def _is_exact(self, system: bool) -> bool:
        # At the seam stand a rule's first words in one layout, and a conversation's in the other.
        first, *others = (_probe(words, system) for words in _PROBES)
        asked = [(first, list(range(len(self.pool)))), *((probe, [0]) for probe in others)]
        return all(
            self._halves(probe, _PROBE_ANSWER, rules) == [self._whole(probe, _PROBE_ANSWER, rule) for rule in rules]
            for probe, rules in asked
        )

    def _halves(self, prompt: Prompt, response: str, rules: Sequence[int]) -> list[list[int]]:
        conversation = encode_text(self.tokenizer, self.template.conversation_part(prompt, response))
        system = has_system(prompt)
        if self.template.rule_first:
            return [[*self.head, *self._rule_ids(rule, system), *conversation, *self.foot] for rule in rules]
        return [[*self.head, *conversation, *self._rule_ids(rule, system), *self.foot] for rule in rules]

    def _encode_rule(self, rule: int, system: bool) -> list[int]:
        return encode_text(self.tokenizer, self.template.rule_part(self.pool.texts[rule], system=system))

    def _whole(self, prompt: Prompt, response: str, rule: int) -> list[int]:
        text = self.template.render(prompt, response, self.pool.texts[rule])
        return [*self.head, *encode_text(self.tokenizer, text), *self.foot]


def _probe(words: str, system: bool) -> list[Message]:
    opening: list[Message] = [{"role": "system", "content": words}] if system else []
    return [*opening, {"role": "user", "content": words}]


@cache
def _warn_of_seam(model: str, layout: str, rules: int, *, also_without_system: bool) -> None:
    """Say so once a process."""
    logger.warning(
        "%s: its tokenizer merges text across the seam between conversation and rule in layout %s%s. Such prompts are "
        "tokenised whole: no score changes, but a conversation is tokenised once for each of up to %d rules.",
        model,
        layout,
        "" if also_without_system else ", where a system message stands above",
        rules,
    )


def answer_words(settings: JudgeSettings) -> tuple[str, ...]:
    """The answers that a judge chooses from, in the order of its method's log-probabilities."""
    words = {"three_labels": settings.labels, "two_labels": settings.labels[:2], "number": NUMBERS}
    return words[settings.method]


def _candidates(tokenizer: Any, settings: JudgeSettings) -> Candidates:
    words, leading_space = answer_words(settings), not settings.chat_template
    if settings.method == "number":
        return plan_candidates(words, answer_token_ids(tokenizer, words, leading_space=leading_space))
    # A label is its first token.
    first = label_token_ids(tokenizer, words, leading_space=leading_space)
    return plan_candidates(words, [[label] for label in first])


def _check_bare(settings: JudgeSettings) -> None:
    """Raise `ConfigError` for what cannot be asked of a server that takes nothing but a user's message."""
    if not settings.chat_template:
        raise ConfigError(
            "judge.chat_template = false, but the judge's server can only be asked by chat, which has one. Set it to "
            "true, or serve the judge with vLLM."
        )
    if settings.method == "number":
        raise ConfigError(
            "judge.method = number asks for what follows an answer's first token, which a chat server does not tell. "
            "Set it to three_labels or two_labels, or serve the judge with vLLM."
        )


def _frame(tokenizer: Any, *, chat: bool) -> tuple[list[int], list[int]]:
    if chat:
        return chat_frame(tokenizer)
    bos = tokenizer.bos_token_id
    # A raw prompt begins as the tokenizer begins any text: with one BOS where the model was trained with it.
    starts_with_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return ([bos] if starts_with_bos else []), []


def judge_fingerprint(settings: JudgeSettings, model_identity: str, chat_template: str | None) -> str:
    """Hash of what a rating's origin is."""
    return fingerprint(**judge_origin(settings, model_identity, chat_template))


def judge_origin(settings: JudgeSettings, model_identity: str, chat_template: str | None) -> dict[str, Any]:
    """All that a rating depends on beside the conversation and the rule's text, by name."""
    return {
        **_what_answers(settings, model_identity),
        "template": RatingTemplate(settings.layout, settings.rule_prefix, settings.method).text,
        "layout": settings.layout,
        "rule_prefix": settings.rule_prefix,
        "chat_template": content_hash(chat_template) if settings.chat_template and not by_chat(settings) else None,
        "labels": list(answer_words(settings)),
        "method": settings.method,
        **_cut(settings),
    }


def by_chat(settings: JudgeSettings) -> bool:
    """Whether the judge is behind a server that was found to put its own chat template around what it is sent."""
    return settings.engine == "openai" and settings.openai.route == "chat"


def _what_answers(settings: JudgeSettings, model_identity: str) -> dict[str, Any]:
    if settings.engine == "openai":
        # The server's numbers are as wide as it holds them; of `model` only the tokenizer is used.
        route = "chat" if by_chat(settings) else "token_ids"
        return {"engine": f"openai, {route}", "model": [settings.openai.model, model_identity], "dtype": None}
    engine = "scripted" if settings.engine == "scripted" else "model"
    return {"engine": engine, "model": model_identity, "dtype": settings.dtype}


def _cut(settings: JudgeSettings) -> dict[str, Any]:
    """What decides how much of a long response is read: nothing, where none is cut."""
    if settings.too_long == "quarantine":
        return {}
    # One engine's context may be a token shorter than another's.
    return {"too_long": settings.too_long, "max_length": settings.max_length, "context_of": settings.engine}
