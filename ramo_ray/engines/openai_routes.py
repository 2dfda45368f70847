"""The ways to ask a server with OpenAI's API for labels' log-probabilities over its whole vocabulary.

`completions`: token ids to `/v1/completions` with `logprob_token_ids` (vLLM): all labels in one request.
`generative_scoring`: token ids to vLLM's `/generative_scoring`, which tells one label's probability a request.
`chat`: text to `/v1/chat/completions`; only the 20 likeliest tokens are told, and a label that is not among them has
no answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

from ramo_ray.engines.base import TokenIds
from ramo_ray.engines.openai_client import (
    Client,
    ExhaustedError,
    NotServedError,
    RequestError,
    Sent,
    UnreadableError,
)
from ramo_ray.errors import ServerError

TOP = 20
"""Most likely tokens that OpenAI's API tells."""
UNTOLD = -9999.0
"""What OpenAI's API says for the log-probability of a token that it tells nothing of."""
CONTROL = re.compile(r"<[|｜][^<>]{1,60}[|｜]>|</?s>|\[/?INST\]|<(start|end)_of_turn>")
"""Names of control tokens, which a server's tokenizer may obey inside a text."""


class Route(Protocol):
    """One way to ask. `templated` says whether the server puts its chat template around the prompt."""

    name: str
    templated: bool

    async def ask(self, client: Client, prompt: TokenIds, labels: TokenIds) -> list[float]:
        """The labels' log-probabilities after one prompt. Raises `RequestError` where one is not told."""

    async def probe(self, client: Client, prompt: TokenIds, labels: TokenIds) -> None:
        """Ask a harmless question, to learn whether the server answers this route at all; errors as in `ask`."""


class CompletionsRoute:
    """Token ids in, all labels out."""

    name, templated = "completions", False

    async def ask(self, client: Client, prompt: TokenIds, labels: TokenIds) -> list[float]:
        """See `Route.ask`."""
        body = {
            "model": client.settings.model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 1,
            "logprobs": 1,
            "logprob_token_ids": list(labels),
            "return_tokens_as_token_ids": True,
        }
        sent = Sent(client.path("completions"), body, len(prompt), 1)
        return await client.post(sent, lambda reply: _by_id(reply, labels))

    async def probe(self, client: Client, prompt: TokenIds, labels: TokenIds) -> None:
        """See `Route.probe`."""
        await self.ask(client, prompt, labels)


class ScoringRoute:
    """Token ids in, one label out: as many requests as labels, of which all but the first find the prompt cached."""

    name, templated = "generative_scoring", False

    async def ask(self, client: Client, prompt: TokenIds, labels: TokenIds) -> list[float]:
        """See `Route.ask`."""
        return [await self._one(client, prompt, label, labels) for label in labels]

    async def _one(self, client: Client, prompt: TokenIds, label: int, labels: TokenIds) -> float:
        body = {
            "model": client.settings.model,
            "query": list(prompt),
            "items": [[]],
            # The score is the first one's probability; with `apply_softmax` it would be its share of the labels'.
            "label_token_ids": [label, *(other for other in labels if other != label)],
            "apply_softmax": False,
        }
        score = await client.post(Sent("generative_scoring", body, len(prompt), 1), _score)
        if score == 0:
            raise RequestError(f"the server tells no probability above 0 of token {label}")
        return math.log(score)

    async def probe(self, client: Client, prompt: TokenIds, labels: TokenIds) -> None:
        """See `Route.probe`."""
        await self._one(client, prompt, labels[0], labels)


class ChatRoute:
    """Text in, the likeliest tokens out. `tokenizer` only translates: prompts into text, labels into what to look for.

    The server parses the text with its own tokenizer, so a text that names a control token is not sent: it might be
    obeyed.
    """

    name, templated = "chat", True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    async def ask(self, client: Client, prompt: TokenIds, labels: TokenIds) -> list[float]:
        """See `Route.ask`."""
        text = self._text(prompt)
        if CONTROL.search(text):
            raise RequestError("the text names a control token, which a chat server might obey")
        told = await self._likeliest(client, text, len(prompt))
        words = [self._text([label]) for label in labels]
        return [self._of(word, told) for word in words]

    async def probe(self, client: Client, prompt: TokenIds, labels: TokenIds) -> None:  # noqa: ARG002
        """See `Route.probe`."""
        await self._likeliest(client, self._text(prompt), len(prompt))

    def _text(self, ids: TokenIds) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @staticmethod
    def _of(word: str, told: dict[bytes, float]) -> float:
        if word.encode() not in told:
            raise RequestError(
                f"the label `{word}` is not among the {len(told)} likeliest tokens that the server tells; "
                "labels must be words that its model begins with such a token"
            )
        return told[word.encode()]

    @staticmethod
    async def _likeliest(client: Client, text: str, tokens: int) -> dict[bytes, float]:
        body = {
            "model": client.settings.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            # Some servers tell probabilities after these.
            "temperature": 1,
            "top_p": 1,
            "logprobs": True,
            "top_logprobs": TOP,
        }
        return await client.post(Sent(client.path("chat/completions"), body, tokens, 1), _top)


async def find_route(client: Client, tokenizer: Any, prompt: TokenIds, labels: TokenIds) -> Route:
    """The configured route, or under `auto` the first that the server answers.

    Raises:
        ServerError: the server answers none of them, or answers nothing at all.
    """
    routes: list[Route] = [CompletionsRoute(), ScoringRoute(), ChatRoute(tokenizer)]
    wanted = client.settings.route
    faults, silent = [], list[ExhaustedError]()
    for route in routes:
        if wanted not in ("auto", route.name):
            continue
        try:
            await route.probe(client, prompt, labels)
        except (RequestError, NotServedError) as error:
            faults.append(f"{route.name}: {error}")
            silent += [error] if isinstance(error, ExhaustedError) else []
        else:
            return route
    if len(silent) == len(faults):
        raise ServerError(f"{client.settings.base_url}: {silent[-1]}. Start the server, or correct openai.base_url.")
    raise ServerError(
        f"{client.settings.base_url} serves {client.settings.model}, but tells no log-probabilities "
        f"({'; '.join(faults)}). Use a server that does: vLLM, or a chat API with logprobs."
    )


def first_choice(reply: Any) -> dict[str, Any]:
    """A completion's first choice. Raises `UnreadableError` if there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise UnreadableError("choices")
    return choices[0]


def _logprobs(reply: Any) -> dict[str, Any]:
    choice = first_choice(reply)
    found = choice.get("logprobs")
    if found is None:
        reason = choice.get("finish_reason")
        why = " (content_filter)" if reason == "content_filter" else ""
        raise RequestError(f"the server's reply has no logprobs{why}")
    if not isinstance(found, dict):
        raise UnreadableError("logprobs as the API defines them")
    return found


def _first(values: dict[str, Any], key: str) -> Any:
    found = values.get(key)
    if not found:
        raise RequestError(f"the server's reply has no logprobs: its {key} is empty")
    if not isinstance(found, list):
        raise UnreadableError(key)
    return found[0]


def _by_id(reply: Any, labels: TokenIds) -> list[float]:
    told = _first(_logprobs(reply), "top_logprobs")
    if not isinstance(told, dict):
        raise RequestError("the server's reply has no logprobs by token id")
    return [_told(told.get(f"token_id:{label}"), f"token {label}") for label in labels]


def _score(reply: Any) -> float:
    data = reply.get("data") if isinstance(reply, dict) else None
    score = data[0].get("score") if isinstance(data, list) and data and isinstance(data[0], dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UnreadableError("a score between 0 and 1")
    return float(score)


def _top(reply: Any) -> dict[bytes, float]:
    """The likeliest tokens' log-probabilities by the tokens' bytes."""
    step = _first(_logprobs(reply), "content")
    entries = step.get("top_logprobs") if isinstance(step, dict) else None
    if not isinstance(entries, list):
        raise UnreadableError("top_logprobs")
    if not entries:
        raise RequestError("the server's reply has no top_logprobs")
    told: dict[bytes, float] = {}
    for entry in entries:
        name, value = _entry(entry)
        if value > UNTOLD:
            told[name] = max(value, told.get(name, value))
    return told


def _entry(entry: Any) -> tuple[bytes, float]:
    try:
        raw: Sequence[int] | None = entry.get("bytes")
        name = entry["token"].encode() if raw is None else bytes(raw)
        return name, _told(entry["logprob"], "a token")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnreadableError("top_logprobs as the API defines them") from None


def _told(value: Any, what: str) -> float:
    logprob = _number(value)
    if not math.isfinite(logprob):
        raise RequestError(f"the server tells no log-probability of {what}")
    return logprob


def _number(value: Any) -> float:
    """A number of the reply; NaN for anything else, and for a whole number that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
