"""The judge's prompts as token ids: a conversation's half and a rule's half, each tokenised once, joined in between."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ramo_ray.core.prompts import RatingTemplate, has_system
from ramo_ray.core.records import Prompt, content_hash, fingerprint
from ramo_ray.core.rules import RulePool
from ramo_ray.models.templates import chat_frame, encode_text, label_token_ids
from ramo_ray.settings import JudgeSettings

_PROBE: Prompt = [{"role": "user", "content": "How do I boil an egg?"}]
_PROBE_WITH_SYSTEM: Prompt = [{"role": "system", "content": "Answer in one sentence."}, *_PROBE]
_PROBE_ANSWER = "Put it into boiling water for eight minutes."


class JudgePrompts:
    """Builds the token ids of (conversation, rule) prompts for one judge.

    Attributes:
        labels: first token of the words for yes, no and irrelevant.
        exact_seam: whether the halves' ids, joined, are the ids of the whole text; without a system message (False)
            and with one (True), which moves the seam. Where a tokenizer merges across the seam (SentencePiece models
            do), whole prompts are tokenised instead: slower, never different.
    """

    def __init__(self, tokenizer: Any, settings: JudgeSettings, pool: RulePool) -> None:
        self.tokenizer, self.pool = tokenizer, pool
        self.template = RatingTemplate(settings.layout, settings.rule_prefix)
        self.head, self.foot = _frame(tokenizer, chat=settings.chat_template)
        self.labels = label_token_ids(tokenizer, settings.labels, leading_space=not settings.chat_template)
        self._rule_ids = lru_cache(maxsize=None)(self._encode_rule)
        self.exact_seam = {has_system(probe): self._is_exact(probe) for probe in (_PROBE, _PROBE_WITH_SYSTEM)}

    def ids(self, prompt: Prompt, response: str, rules: Sequence[int]) -> list[list[int]]:
        """Token ids of the prompts that ask about these rules (indices into the pool), in their order."""
        if self.exact_seam[has_system(prompt)]:
            return self._halves(prompt, response, rules)
        return [self._whole(prompt, response, rule) for rule in rules]

    def _is_exact(self, probe: Prompt) -> bool:
        return self._halves(probe, _PROBE_ANSWER, [0]) == [self._whole(probe, _PROBE_ANSWER, 0)]

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


def _frame(tokenizer: Any, *, chat: bool) -> tuple[list[int], list[int]]:
    if chat:
        return chat_frame(tokenizer)
    bos = tokenizer.bos_token_id
    # A raw prompt begins as the tokenizer begins any text: with one BOS where the model was trained with it.
    starts_with_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return ([bos] if starts_with_bos else []), []


def judge_fingerprint(settings: JudgeSettings, model_identity: str, chat_template: str | None) -> str:
    """Hash of all that a rating depends on beside the conversation and the rule's text."""
    return fingerprint(
        engine="scripted" if settings.engine == "scripted" else "model",
        model=model_identity,
        dtype=settings.dtype,
        template=RatingTemplate(settings.layout, settings.rule_prefix).text,
        layout=settings.layout,
        rule_prefix=settings.rule_prefix,
        chat_template=content_hash(chat_template) if settings.chat_template else None,
        labels=list(settings.labels),
        method="three_labels",
    )
