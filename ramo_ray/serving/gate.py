"""What stands before the routes: who may ask, how long a body may be and may take, and what a fault is told as.

Pure ASGI. No reply holds a text of a request or a trace of ours. A request's id is what Serve gave it and sends back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ramo_ray.serving.settings import LimitSettings
from ramo_ray.serving.tokens import TokenFile

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Observe = Callable[[str, int, float], None]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/healthz", "/readyz", "/openapi.json")
"""Paths that need no token: they tell nothing of anybody's texts, and do no work."""
ID_HEADER = b"x-request-id"
MOST_ID = 128
LENGTH = "ramo_body_length"
"""Where a request's scope says how long its body is."""
logger = logging.getLogger(__name__)


class Refused(Exception):  # noqa: N818 - a reply, not a defect
    """A reply that is an error: its status, a sentence for who asked, and after how many seconds to ask again."""

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(status, sentence, retry_after)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


class Gate:
    """Lets pass to an app what may be asked.

    Args:
        app: what answers.
        tokens: who may ask; None lets everybody.
        limits: of a body.
        observe: told of each request that was answered: its path, the status, and the seconds that it took.
    """

    def __init__(self, app: App, tokens: TokenFile | None, limits: LimitSettings, observe: Observe) -> None:
        self.app, self.tokens, self.limits, self.observe = app, tokens, limits, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        identity, began = _identity(headers), time.perf_counter()
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.observe(scope["path"], status, time.perf_counter() - began)
            await send(message)

        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
            scope[LENGTH] = len(body)
            await self.app(scope, _once(body, receive), reply)
        except Refused as refused:
            if not status:
                await _refuse(refused, reply)
        except Exception as error:  # noqa: BLE001 - whoever asked is told nothing of it, and its text may hold theirs
            logger.error("request %s: %s in %s", identity.decode(), type(error).__name__, _place(error))
            if not status:
                await _refuse(Refused(500, "an error of the server's; its log has the request's id."), reply)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self.tokens is None or scope["path"] in OPEN:
            return
        given = headers.get(b"authorization")
        if given is None:
            raise Refused(401, "send a token: the header `Authorization: Bearer TOKEN`.")
        if not self.tokens.allows(given.decode("latin-1")):
            raise Refused(403, "this token is not known here, or not any more.")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body: read here, so that a slow or a long one takes nothing else."""
        most = self.limits.body_bytes
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > most:
            raise _too_long(most)
        parts, length = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the connection was closed before the body was there.")
                    parts.append(message.get("body", b""))
                    length += len(parts[-1])
                    if length > most:
                        raise _too_long(most)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the body took over {self.limits.body_seconds:g} s; send it at once.") from None


def _too_long(most: int) -> Refused:
    return Refused(413, f"the body exceeds {most:,} bytes; send fewer items at a time.")


def _identity(headers: dict[bytes, bytes]) -> bytes:
    """The id that a request came with, where it is fit to be logged, or a new one."""
    given = headers.get(ID_HEADER, b"")
    fit = 0 < len(given) <= MOST_ID and all(byte in b"-_." or (chr(byte).isalnum() and byte < 128) for byte in given)
    return given if fit else uuid.uuid4().hex.encode()


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and after it what else comes: that whoever asked has gone."""
    given = False

    async def from_memory() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return from_memory


async def _refuse(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": refused.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(refused.retry_after))).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _place(error: BaseException) -> str:
    """Where an error came from, without its words, which may quote a text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
