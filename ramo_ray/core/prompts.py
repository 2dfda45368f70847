"""The texts that models are asked, from the templates in `templates/`, and what a dialogue must be to fit them.

Knows no tokenizer and no chat template: text in, text out. Users' texts may hold braces or a field's name, so
templates are filled in one pass over the *template*; what is filled in is never searched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from ramo_ray.core.records import ROLES, Prompt
from ramo_ray.core.rules import strip_prefix
from ramo_ray.core.texts import text_fault
from ramo_ray.settings import Method

Layout = Literal["paper", "rule_last"]
RulePrefix = Literal["keep", "strip"]
Severity = Literal["Minor", "Moderate", "Severe"]

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
ADAPTER_RULES = 5
"""Rules that the adapter's template asks for."""

_FIELD = re.compile(r"\{([^{}]+)\}")
_TEMPLATES = Path(__file__).with_name("templates")


@cache
def read_template(name: str) -> str:
    """Text of `templates/<name>.txt`, as it stands."""
    return (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda field: values[field[1]], template)


def has_system(prompt: Prompt) -> bool:
    """Whether the prompt opens with a system message that says something."""
    return prompt[0]["role"] == "system" and bool(prompt[0]["content"].strip())


def question_text(prompt: Prompt) -> str:
    """The `{question}` of a rating template: all turns up to the last human one.

    Turns are joined as `…\\n\\nAssistant: …\\n\\nHuman: …`; the first `Human: ` is the template's own. A system
    message is no part of it: it stands before that `Human: ` as its own paragraph.
    """
    turns = [message for message in prompt if message["role"] != "system"]
    first, *later = turns
    return "".join([first["content"], *(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in later)])


def last_human_turn(prompt: Prompt) -> str:
    """The last user message: the x of sim(x, u_i) in equation 12."""
    return next(message["content"] for message in reversed(prompt) if message["role"] == "user")


@cache
def _halves(layout: Layout, method: Method, system: bool) -> tuple[str, str]:
    """The template's two halves. The first ends at a colon, so that a tokenizer, too, sees a boundary there."""
    template = _rating_template(layout, method)
    if system:
        template = template.replace("Human: {question}", "{system}\n\nHuman: {question}")
    seam = {"rule_last": "Safety Rule:", "paper": "Conversation:" if system else "Human:"}[layout]
    before, colon, after = template.partition(seam)
    return before + colon, after


def _rating_template(layout: Layout, method: Method) -> str:
    return read_template(f"rating_{layout}" if method == "three_labels" else f"rating_{layout}_{method}")


@dataclass(frozen=True)
class RatingTemplate:
    """The judge's question on one rule and one conversation (Appendix D), in two halves that are computed apart.

    One half depends on the conversation only, the other on the rule only; their texts in order are the template
    with its fields replaced. `layout` "paper" puts the rule first, "rule_last" puts it last; `method` says what the
    judge may answer. The second half begins with the space after `Human:` or `Safety Rule:`, where the tokens of the
    halves are those of the whole text.

    In layout "paper" a system message must stand before `Human:`, so there the seam is after `Conversation:` (a
    tokenizer that joins a colon with newlines, as Llama 3's does, then sees one boundary more than in the whole
    text). This is all that the rule's half needs to know of the conversation: whether it has a system message.
    """

    layout: Layout
    rule_prefix: RulePrefix
    method: Method = "three_labels"

    @property
    def text(self) -> str:
        """The template's raw text, for fingerprints."""
        return _rating_template(self.layout, self.method)

    @property
    def rule_first(self) -> bool:
        """Whether the rule's half precedes the conversation's."""
        return self.layout == "paper"

    def rule_part(self, rule: str, *, system: bool = False) -> str:
        """The half with the rule's text. `system` is `has_system` of the conversation's prompt."""
        half = _halves(self.layout, self.method, system)[0 if self.rule_first else 1]
        return _fill(half, {"rule": strip_prefix(rule) if self.rule_prefix == "strip" else rule})

    def conversation_part(self, prompt: Prompt, response: str) -> str:
        """The half with the conversation."""
        half = _halves(self.layout, self.method, has_system(prompt))[1 if self.rule_first else 0]
        return _fill(half, {"system": prompt[0]["content"], "question": question_text(prompt), "answer": response})

    def render(self, prompt: Prompt, response: str, rule: str) -> str:
        """The whole question: the first half and the second."""
        conversation, rule_half = (
            self.conversation_part(prompt, response),
            self.rule_part(rule, system=has_system(prompt)),
        )
        return rule_half + conversation if self.rule_first else conversation + rule_half


def adapter_text(prompt: Prompt, response_a: str, response_b: str) -> str:
    """What the Rule Adapter reads of a trio (Appendix E.2).

    A single human turn stands as it is. In a longer dialogue, or under a system message (the first paragraph then),
    each turn has its speaker, the first too, as no `Human: ` comes from this template.
    """
    question = question_text(prompt)
    if has_system(prompt):
        question = f"{prompt[0]['content']}\n\nHuman: {question}"
    elif sum(message["role"] != "system" for message in prompt) > 1:
        question = f"Human: {question}"
    return _fill(read_template("adapter"), {"Question": question, "Response A": response_a, "Response B": response_b})


def adapter_target(rules: Sequence[str]) -> str:
    """What a generative Rule Adapter learns to write (Appendix E.2): the five critical rules, one a line."""
    if len(rules) != ADAPTER_RULES:
        raise ValueError(f"the adapter's template asks for {ADAPTER_RULES} rules, but {len(rules)} were given")
    return _fill(read_template("adapter_target"), {f"rule_{place}": rule for place, rule in enumerate(rules, start=1)})


def rule_to_prompt(rule: str, severity: Severity) -> str:
    """The request for one prompt that puts a rule to the test (Appendix C.1)."""
    return _fill(read_template("prompt_from_rule"), {"rule": rule, "severe_level": severity})


def check_prompt(prompt: object) -> None:
    """Raise ValueError, with the reason, unless the templates can hold this prompt.

    A prompt is a list (or, from Parquet, an array) of {role, content} messages: at most one system message, first;
    then turns from a user's to a user's, whose last is not blank.
    """
    if not isinstance(prompt, list | tuple | np.ndarray):
        raise ValueError(f"prompt is not a list of messages but a {type(prompt).__name__}")
    if len(prompt) == 0:
        raise ValueError("prompt has no messages")
    roles = [_checked_role(message, place) for place, message in enumerate(prompt)]
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise ValueError("prompt has a system message that is not the first message")
    if not turns or turns[0] != "user":
        raise ValueError("prompt does not begin with a user's turn (after the system message, if any)")
    if turns[-1] != "user":
        raise ValueError("prompt does not end with a user's turn")
    if not prompt[-1]["content"].strip():
        raise ValueError("prompt ends with a blank turn")


def _checked_role(message: object, place: int) -> str:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f"prompt[{place}] is not a message with `role` and `content`")
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"prompt[{place}] has the unknown role {repr(role)[:40]}; known: {', '.join(ROLES)}")
    fault = text_fault(message["content"])
    if fault is not None:
        raise ValueError(f"prompt[{place}] {fault}")
    return role


def check_response(response: object) -> None:
    """Raise ValueError, with the reason, unless this is a text that can be rated."""
    fault = text_fault(response)
    if fault is not None:
        raise ValueError(f"response {fault}")
    if not str(response).strip():
        raise ValueError("response is blank")
