"""A conversation's judge prompts within the judge's context: as they are, with the response cut, or not at all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ramo_ray.core.records import Prompt
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.templates import token_ends

_NOTHING_FITS = (
    "too long for the judge: nothing of the response fits beside {alone:,} tokens of prompt and rule, "
    "its context holds {context:,}"
)


class Fitted(NamedTuple):
    """The prompts about some rules, and whether the response in them is cut; or the reason why there are none."""

    prompts: list[list[int]]
    truncated: bool = False
    fault: str | None = None


def fit(prompts: JudgePrompts, prompt: Prompt, response: str, rules: Sequence[int], context: int) -> Fitted:
    """Prompts that fit into `context` tokens, or the reason why they do not."""
    asked = prompts.ids(prompt, response, rules)
    longest = _longest(asked) + prompts.answers.longest_prefix
    if longest <= context:
        return Fitted(asked)
    return Fitted([], fault=f"too long for the judge: {longest:,} tokens, its context holds {context:,}")


def fit_or_cut(prompts: JudgePrompts, prompt: Prompt, response: str, rules: Sequence[int], context: int) -> Fitted:
    """Prompts that fit into `context` tokens, with the response cut at its end where they would not.

    How much is left does not depend on the rules that are asked now: the prompt about each rule of the pool fits, so
    that a conversation is the same text on all rules and in every stage. It is cut between two of its tokens, and as
    late as the longest rule allows.
    """
    room = context - prompts.answers.longest_prefix
    everything = range(len(prompts.pool))
    asked, text = prompts.ids(prompt, response, everything), response
    while _longest(asked) > room:
        rule = max(everything, key=lambda rule: len(asked[rule]))
        text = _cut(prompts, prompt, text, rule, room)
        if not text.strip():
            alone = _longest(prompts.ids(prompt, "", everything)) + prompts.answers.longest_prefix
            return Fitted([], fault=_NOTHING_FITS.format(alone=alone, context=context))
        asked = prompts.ids(prompt, text, everything)
    return Fitted([asked[rule] for rule in rules], truncated=text != response)


def _cut(prompts: JudgePrompts, prompt: Prompt, text: str, rule: int, room: int) -> str:
    """The longest beginning of a text, in whole tokens, whose prompt about a rule fits; empty where none does."""
    ends = token_ends(prompts.tokenizer, text)
    fitting = bisect_right(ends, room, key=lambda end: len(prompts.ids(prompt, text[:end], [rule])[0]))
    return text[: ends[fitting - 1]] if fitting else ""


def _longest(asked: Sequence[Sequence[int]]) -> int:
    return max(map(len, asked))
