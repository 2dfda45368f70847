"""A client of the reward endpoint, from the standard library alone: this file can be copied anywhere.

with RewardClient("http://127.0.0.1:8000", token="...") as client:
    client.rewards([{"prompt": "How do I lock a bicycle?", "response": "Through the frame."}])
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

AGAIN = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may be answered."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
Conversation = Mapping[str, Any]
"""`prompt` (a text, or messages) and `response`; or `messages`, of which the last is the assistant's."""


class EndpointError(Exception):
    """The endpoint refused a request, or did not answer it in time.

    Attributes:
        status: its HTTP status; None where no answer came.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence, status)
        self.sentence, self.status = sentence, status

    def __str__(self) -> str:
        return self.sentence


class Comparison(NamedTuple):
    """The probability that response A is preferred, and both rewards."""

    probability_a: float
    reward_a: float
    reward_b: float


class RewardClient:
    """Asks an endpoint. It may be used by several threads, each of which keeps a connection of its own.

    Args:
        url: address of the endpoint, with no path or with that under which it is served.
        token: a bearer token of the endpoint's; empty takes the password of `url`, if it has one.
        timeout_s: of one request.
        patience_s: how long a request is made again while the endpoint is busy, away or about to end.
        clock, sleep: time, as tests have it.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 150.0,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.address = urlsplit(url)
        if self.address.scheme not in ("http", "https") or not self.address.hostname:
            raise ValueError(f"{url!r} is no http address; give one like http://127.0.0.1:8000")
        self.token, self.timeout_s, self.patience_s = token or self.address.password, timeout_s, patience_s
        self._stopped = threading.Event()
        self.clock, self.sleep = clock, sleep or self._stopped.wait
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """Rewards in the order asked.

        Raises:
            EndpointError: it was refused, or patience has ended.
        """
        if not conversations:
            return []
        found = self.ask("/reward", {"items": [dict(one) for one in conversations]})["rewards"]
        return [one["reward"] for one in found]

    def compare(self, prompt: str | Sequence[Mapping[str, str]], response_a: str, response_b: str) -> Comparison:
        """Which of two responses the reward model prefers. Errors: those of `rewards`."""
        body = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
        found = self.ask("/compare", body)
        return Comparison(*(found[name] for name in Comparison._fields))

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to any request, as JSON. Errors: those of `rewards`."""
        content, end, pause = json.dumps(body).encode(), self.clock() + self.patience_s, FIRST_PAUSE_S
        while True:
            try:
                status, headers, reply = self._once(path, content)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                fault = EndpointError(f"{self.address.hostname} does not answer: {type(error).__name__}")
                wait = 0.0
            else:
                if status == 200:
                    return dict(json.loads(reply))
                fault = EndpointError(_sentence(status, reply), status)
                if status not in AGAIN:
                    raise fault
                stated = headers.get("Retry-After", "")
                wait = float(stated) if stated.isdigit() else 0.0
            # By chance in part, so that those who failed together do not return together.
            wait = max(wait, pause) * random.uniform(1.0, 1.5)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            if self._stopped.is_set() or self.clock() + wait > end:
                raise fault
            self.sleep(wait)

    def _once(self, path: str, content: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self._connection()
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection.request("POST", self.address.path.rstrip("/") + path, content, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's."""
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is None:
            secure = self.address.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            found = self._own.connection = kind(self.address.hostname or "", self.address.port, timeout=self.timeout_s)
            with self._lock:
                self._open.add(found)
        return found

    def _drop(self) -> None:
        """Close this thread's connection; its next request opens another."""
        connection = self._own.connection
        self._own.connection = None
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def stop(self) -> None:
        """Have no thread ask again: what is under way ends as it will."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            while self._open:
                self._open.pop().close()


def _sentence(status: int, reply: bytes) -> str:
    try:
        told = str(json.loads(reply)["error"])
    except (ValueError, KeyError, TypeError):
        told = http.client.responses.get(status, "")
    return f"{status}: {told[:500]}"
