"""Texts of requests to the token ids that a reward model reads; what it cannot read is refused with its reason."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ramo_ray.core.records import Message, Prompt
from ramo_ray.errors import ModelError, RolesError
from ramo_ray.models.templates import load_tokenizer, reward_token_ids
from ramo_ray.serving.gate import Refused
from ramo_ray.serving.schema import ChatMessage, Classify, Conversation, RemoteReward, Score, Trio
from ramo_ray.serving.settings import ServingSettings

Row = list[int]
TOKEN_FORM = r"<[|\uff5c][^<>\s]{1,40}[|\uff5c]>"
"""How most models spell their control tokens."""
TAIL = 24
"""Characters by which a prompt's end is known."""
ROLES = ("system", "user", "assistant")


class Reader:
    """Owns the reward model's tokenizer. Every fault is a `Refused` that names the item by its place."""

    def __init__(self, settings: ServingSettings, context_length: int, vocabulary: int) -> None:
        self.limits, self.vocabulary = settings.limits, vocabulary
        ends = "|".join([TOKEN_FORM, *map(re.escape, settings.turn_ends)])
        # Some templates put a line's end behind the turn's, and some models end more than once.
        self.ends = re.compile(rf"(?:(?:{ends})\s*)+\Z")
        self.tokenizer = load_tokenizer(Path(settings.model))
        self.most = min(self.limits.tokens, context_length)

    def conversations(self, items: Sequence[Conversation]) -> list[Row]:
        """Rows of conversations."""
        self._check_count(len(items))
        return [self._row(*_parts(item), place) for place, item in enumerate(items)]

    def trio(self, trio: Trio) -> list[Row]:
        """Rows of both responses."""
        prompt = as_messages(trio.prompt)
        return [self._row(prompt, response, place) for place, response in enumerate((trio.response_a, trio.response_b))]

    def remote(self, asked: RemoteReward) -> list[Row]:
        """Rows of what a policy wrote, in the reward model's own template: the messages ride in the labels."""
        self._check_count(len(asked.query))
        given = zip(asked.query, asked.prompts, asked.labels, strict=True)
        return [
            self._row(_messages_of(label, place), self._response(query, prompt, place), place, written=True)
            for place, (query, prompt, label) in enumerate(given)
        ]

    def scored(self, asked: Score) -> list[Row]:
        """Rows of pairs of texts."""
        pairs = asked.pairs()
        self._check_count(len(pairs))
        return [
            self._row([{"role": "user", "content": prompt}], response, place)
            for place, (prompt, response) in enumerate(pairs)
        ]

    def classified(self, asked: Classify) -> list[Row]:
        """Rows of whole texts, in which control tokens are control tokens; or of ids; or of messages."""
        if asked.messages is not None:
            return self.conversations([Conversation(messages=asked.messages)])
        given = asked.input
        many: list[Any] = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        self._check_count(len(many))
        return [
            self._text(one, place) if isinstance(one, str) else self._ids(one, place) for place, one in enumerate(many)
        ]

    def _check_count(self, count: int) -> None:
        if count > self.limits.items:
            raise Refused(413, f"{count:,} items; {self.limits.items:,} fit into one request.")

    def _row(self, prompt: Prompt, response: str, place: int, *, written: bool = False) -> Row:
        """Of a response that a policy has `written`, whatever it is, as it has to have a reward."""
        for text in (*(message["content"] for message in prompt), response):
            self._check_text(text, place, written=written)
        if not response.strip() and not written:
            raise Refused(422, f"item {place}: the response is empty.")
        return self._fitting(lambda: reward_token_ids(self.tokenizer, prompt, response), place)

    def _text(self, text: str, place: int) -> Row:
        self._check_text(text, place)
        return self._fitting(lambda: list(self.tokenizer(text, verbose=False)["input_ids"]), place)

    def _ids(self, ids: Sequence[int], place: int) -> Row:
        if not all(0 <= number < self.vocabulary for number in ids):
            raise Refused(422, f"item {place}: token ids lie outside 0 to {self.vocabulary - 1:,}.")
        return self._fitting(lambda: list(ids), place)

    def _fitting(self, read: Callable[[], Row], place: int) -> Row:
        try:
            row = read()
        except RolesError:
            raise Refused(
                422, f"item {place}: the reward model's chat template does not take this order of roles."
            ) from None
        except ModelError:
            raise Refused(422, f"item {place}: the reward model's chat template does not take this.") from None
        if not row:
            raise Refused(422, f"item {place}: holds no token.")
        if len(row) > self.most:
            raise Refused(413, f"item {place}: {len(row):,} tokens; the reward model reads {self.most:,} here.")
        return row

    def _check_text(self, text: str, place: int, *, written: bool = False) -> None:
        if len(text) > self.limits.text_chars:
            raise Refused(413, f"item {place}: a text of {len(text):,} characters; {self.limits.text_chars:,} fit.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(422, f"item {place}: a text holds half a surrogate pair, which is no character.") from None
        if "\0" in text and not written:
            raise Refused(422, f"item {place}: a text holds a NUL character.")

    def _response(self, query: str, prompt: str, place: int) -> str:
        # Decoded from token ids, a text may have other white space, and its characters may be composed.
        composed = (unicodedata.normalize("NFC", prompt), unicodedata.normalize("NFC", query))
        for begun, whole in ((prompt, query), composed):
            end = _end_of(begun, whole)
            if end is not None:
                return self.ends.sub("", whole[end:])
        raise Refused(422, f"item {place}: `query` does not begin with its prompt.")


def _end_of(prompt: str, query: str) -> int | None:
    """Where a query's prompt ends: if it does not stand there as it is, its last words are looked for nearby."""
    if query.startswith(prompt):
        return len(prompt)
    tail, slack = prompt[-TAIL:], max(64, len(prompt) // 4)
    first = query.rfind(tail, max(0, len(prompt) - slack - len(tail)), len(prompt) + slack) if tail.strip() else -1
    return first + len(tail) if first >= 0 else None


def _parts(item: Conversation) -> tuple[Prompt, str]:
    if item.messages is not None:
        return _plain(item.messages[:-1]), item.messages[-1].content
    assert item.prompt is not None and item.response is not None  # noqa: PT018 - the schema has made sure
    return as_messages(item.prompt), item.response


def as_messages(prompt: str | list[ChatMessage]) -> Prompt:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _plain(prompt)


def _plain(messages: Sequence[ChatMessage]) -> Prompt:
    return [{"role": message.role, "content": message.content} for message in messages]


def _messages_of(label: str | list[ChatMessage], place: int) -> Prompt:
    if not isinstance(label, str):
        return _plain(label)
    sentence = (
        f"item {place}: its label holds no messages. Send the prompt's messages as JSON, "
        '[{"role": "user", "content": "..."}]: the reward model has a template of its own.'
    )
    try:
        found = json.loads(label)
    except (ValueError, RecursionError):
        raise Refused(422, sentence) from None
    if not isinstance(found, list) or not found or not all(_is_message(one) for one in found):
        raise Refused(422, sentence)
    return [Message(role=one["role"], content=one["content"]) for one in found]


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and one.get("role") in ROLES and isinstance(one.get("content"), str)
