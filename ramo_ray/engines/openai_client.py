"""HTTP to a server with OpenAI's API: many requests at a time, repeated where that helps, counted and paced.

Knows no prompt and no label: a JSON body out, a reply read by the caller's function. No error says anything of a
body, nor of what the server writes, which may quote one; the key stands in a header and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ramo_ray.engines.base import Usage
from ramo_ray.engines.pacing import LONGEST_ASKED, Clock, Pace, asked_wait, wait_before
from ramo_ray.errors import EngineError, ServerError
from ramo_ray.settings import OpenAISettings

if TYPE_CHECKING:
    import httpx

REPEATED = frozenset({408, 409, 429, *range(500, 600)}) - {501}
"""Statuses that another try may mend."""
STARTING_RETRIES = 2
"""Times that a server is asked again at the start, where a wrong address should be told soon."""
FATAL = frozenset({401, 402, 404})
"""Statuses that no row can be blamed for: the key, the account, the model. 403 is some gateways' word for a text."""
Reply = TypeVar("Reply")


class RequestError(EngineError):
    """One request has no usable answer, and would have none if it were made again."""


class ExhaustedError(RequestError):
    """One request had no answer at all its tries: the server's fault, unless it answers others."""


class NotServedError(ServerError):
    """The server knows no such path or model (HTTP 404)."""


class _LostError(Exception):
    """One try has failed; another may succeed. `asked` is how long the server wants to be left alone."""

    def __init__(self, reason: str, asked: float | None = None) -> None:
        super().__init__(reason)
        self.asked = asked


class UnreadableError(Exception):
    """A reply that is not what the API promises: a caller's reader raises it, and the request is made again."""


class Sent(NamedTuple):
    """A request: its path below the server's root, its body, the tokens of its prompt, and how many it may write."""

    path: str
    body: Mapping[str, Any]
    prompt_tokens: int = 0
    limit: int = 0


class Client:
    """Asks one server. Everything happens on one event loop.

    Attributes:
        answered: replies that could be read so far: whether a server is alive shows in this number growing.
    """

    def __init__(self, settings: OpenAISettings, *, actors: int = 1, clock: Clock | None = None) -> None:
        import httpx

        self.settings, self.clock = settings, clock or Clock()
        self.root, self.api_path = _split(settings.base_url)
        self.http = httpx.AsyncClient(
            base_url=self.root,
            headers=_key_header(settings),
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
        self.pace = Pace(_share(requests, actors), _share(tokens, actors), self.clock)
        self.counted: Counter[str] = Counter()
        self.answered = 0

    @property
    def usage(self) -> Usage:
        """What the server has counted so far, and its price."""
        counted, prices = self.counted, self.settings
        cached_price = prices.input_price if prices.cached_input_price is None else prices.cached_input_price
        fresh = counted["prompt_tokens"] - counted["cached_tokens"]
        cost = (
            fresh * prices.input_price
            + counted["cached_tokens"] * cached_price
            + counted["completion_tokens"] * prices.output_price
        )
        names = [name for name in Usage._fields if name != "cost"]
        return Usage(**{name: counted[name] for name in names}, cost=cost / 1e6)

    def path(self, name: str) -> str:
        """A path of the API, below the server's root."""
        return f"{self.api_path}/{name}".lstrip("/")

    async def get(self, path: str, read: Callable[[Any], Reply]) -> Reply:
        """Ask a server that may not be there for something that costs nothing. Errors are those of `post`."""
        return await self._persistently("GET", Sent(path, {}), read, min(STARTING_RETRIES, self.settings.max_retries))

    async def post(self, sent: Sent, read: Callable[[Any], Reply]) -> Reply:
        """Send a body; give what `read` makes of the reply's JSON.

        Args:
            sent: what to send.
            read: raises `UnreadableError` with what a reply lacks, and `RequestError` for a sound reply without answer.

        Raises:
            RequestError: the server refuses this request. ExhaustedError: it failed as often as the settings allow.
            ServerError: the server refuses the key, the account or the model.
        """
        return await self._persistently("POST", sent, read, self.settings.max_retries)

    async def _persistently(self, method: str, sent: Sent, read: Callable[[Any], Reply], retries: int) -> Reply:
        repetition = 0
        while True:
            await self.pace.wait(sent.prompt_tokens + sent.limit)
            try:
                return await self._once(method, sent, read)
            except _LostError as lost:
                if lost.asked is not None and lost.asked > LONGEST_ASKED:
                    raise ExhaustedError(f"{lost}: the server asks to wait {lost.asked:,.0f} s") from None
                if repetition == retries:
                    raise ExhaustedError(f"{lost}, at the last of {repetition + 1} tries") from None
                await self.clock.sleep(wait_before(repetition, lost.asked, self.clock))
            repetition += 1
            self.counted["retries"] += 1

    async def _once(self, method: str, sent: Sent, read: Callable[[Any], Reply]) -> Reply:
        import httpx

        self.counted["requests"] += 1
        try:
            # httpx counts the seconds between two bytes, and a server that trickles would never be done.
            async with asyncio.timeout(self.settings.timeout_s):
                response = await self.http.request(method, sent.path, json=sent.body or None)
        except (TimeoutError, httpx.TimeoutException):
            raise _LostError(f"no answer within {self.settings.timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise _LostError(f"the connection failed ({type(error).__name__})") from None
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            value = json.loads(response.content)
        except ValueError:
            raise _LostError("the server's reply is no JSON") from None
        self._count(value, sent)
        try:
            reply = read(value)
        except UnreadableError as error:
            raise _LostError(f"the server's reply lacks {error}") from None
        self.answered += 1
        return reply

    def _refusal(self, response: httpx.Response) -> Exception:
        status = response.status_code
        said = f"{_named(status)}{_code(response)}"
        if status in FATAL:
            kind = NotServedError if status == 404 else ServerError
            return kind(f"{self.settings.base_url} answers {said}: {self._remedy(status)}")
        if status in REPEATED:
            return _LostError(said, asked_wait(response.headers, self.clock))
        return RequestError(f"the server refuses the request: {said}")

    def _remedy(self, status: int) -> str:
        if status == 404:
            return f"check openai.base_url, and that it serves openai.model = {self.settings.model}."
        if status == 402:
            return "the account has no credit left; top it up and run again."
        variable = self.settings.api_key_env
        if not variable:
            return (
                "it wants a key; put it into an environment variable, and the variable's name into openai.api_key_env."
            )
        return (
            f"the key in the environment variable {variable} (openai.api_key_env) is not accepted; put in a valid one."
        )

    def _count(self, value: Any, sent: Sent) -> None:
        told = value.get("usage") if isinstance(value, dict) else None
        told = told if isinstance(told, dict) else {}
        details = told.get("prompt_tokens_details")
        details = details if isinstance(details, dict) else {}
        prompt_tokens = _whole(told.get("prompt_tokens"), sent.prompt_tokens)
        self.counted["prompt_tokens"] += prompt_tokens
        self.counted["completion_tokens"] += _whole(told.get("completion_tokens"), 0)
        self.counted["cached_tokens"] += min(_whole(details.get("cached_tokens"), 0), prompt_tokens)

    async def close(self) -> None:
        """Close all connections."""
        await self.http.aclose()


def _split(base_url: str) -> tuple[str, str]:
    """The server's root, where vLLM's own paths lie, and the API's path below it."""
    address = urlsplit(base_url)
    path = address.path.rstrip("/")
    above, _, last = path.rpartition("/")
    outer = above if re.fullmatch(r"v\d+\w*", last) else path
    return f"{address.scheme}://{address.netloc}{outer}/", path.removeprefix(outer).strip("/")


def _key_header(settings: OpenAISettings) -> dict[str, str]:
    variable = settings.api_key_env
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ServerError(
            f"openai.api_key_env = {variable}: no such environment variable is set here. Set it to the key on every "
            "machine with actors, before Ray starts."
        )
    if not (key.isascii() and key.isprintable()):
        raise ServerError(f"openai.api_key_env = {variable}: its value is no key: it holds characters that none has.")
    return {"Authorization": f"Bearer {key}"}


def _share(limit: float | None, actors: int) -> float | None:
    return limit / actors if limit else None


def _named(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _code(response: httpx.Response) -> str:
    """The error's code, where it is a word: never its message, which may quote the prompt or the key."""
    try:
        error = json.loads(response.content)["error"]
        code = error.get("code") or error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    # A word of letters is neither a key nor a sentence.
    return f" ({code})" if isinstance(code, str) and re.fullmatch("[A-Za-z_]{1,50}", code) else ""


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise
