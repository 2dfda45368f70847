"""The reward of a PPO rollout, asked of an HTTP endpoint; OpenRLHF loads this file by its path in every rollout actor.

    POST {"query": [str], "prompts": [str], "labels": [str]}
    → {"rewards": [float], "scores"?: [float], "extra_logs"?: {name: [float]}}

Knows no model and no Ray. OpenRLHF hands it texts and nothing else, so its settings are environment variables. An
endpoint that is down or busy is asked again until patience ends; a reward that cannot be had ends the run, and is
never replaced by a number. No error says anything of a text, nor of a reply's body, which may quote one.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from ramo_ray.errors import ConfigError, RamoError, ServerError

URLS = "RAMO_REWARD_URLS"
PATIENCE = "RAMO_REWARD_PATIENCE_S"
TIMEOUT = "RAMO_REWARD_TIMEOUT_S"
FAILURE = "RAMO_REWARD_FAILURE"
"""File for the reason when the run is given up, as {"error": text}."""
REPEATED = frozenset({408, 425, 429, *range(500, 600)})
"""Statuses that another try may mend."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between the first two tries, and between any; it doubles in between."""


class RewardStopped(BaseException):
    """The run ends for want of a reward; the message says why, and what would do.

    Not an `Exception`: OpenRLHF logs those, goes on without a reward, and fails later with words about tensors.
    """


class _LostError(Exception):
    """One try has failed; another may succeed."""


class Settings(NamedTuple):
    """Where rewards are asked for, and how patiently."""

    urls: tuple[str, ...]
    """Taken in turn by the calls; a try that failed goes on to the next."""
    patience_s: float
    """How long one call may take in all while endpoints are down, busy or slow."""
    timeout_s: float
    """How long one request may wait for its connection, and then for its reply."""


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings; raise `ConfigError` with the name of a variable that cannot be used."""
    urls = tuple(url for url in map(str.strip, environment.get(URLS, "").split(",")) if url)
    # An address may hold a password: none is quoted.
    if not urls or not all(re.match(r"https?://[^/\s]", url) for url in urls):
        raise ConfigError(f"{URLS}: give the endpoint's address, http://host:5000/path, or several with commas between")
    return Settings(urls, _seconds(environment, PATIENCE, "600"), _seconds(environment, TIMEOUT, "180"))


def _seconds(environment: Mapping[str, str], variable: str, default: str) -> float:
    text = environment.get(variable, default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{variable} = {text}: give seconds, more than 0")
    return seconds


class RewardClient:
    """Asks the endpoints, from any number of threads. Once it has given up, it asks no more.

    Reads the environment at the first call, so that this file can be imported without it.

    Attributes:
        stopped: why it gave up; None while it has not.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.environment, self.clock, self.sleep = environment, clock, sleep
        self.lock, self.turns = threading.Lock(), itertools.count()
        self.settings: Settings | None = None
        self.stopped: str | None = None

    def ask(self, queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
        """What `reward_func` gives, and raises."""
        try:
            settings = self._started()
            if not len(queries) == len(prompts) == len(labels) == 1:
                raise ConfigError(f"reward_func takes one response a call, as OpenRLHF 0.11 gives, not {len(queries)}")
            # json, unlike httpx, takes the lone surrogates that a prompt read from JSON may hold.
            body = json.dumps({"query": queries, "prompts": prompts, "labels": labels}).encode()
            return self._patiently(settings, body)
        except Exception as error:  # noqa: BLE001 - OpenRLHF would swallow a defect of ours too
            # A foreign message might quote a text.
            reason = str(error) if isinstance(error, RamoError) else f"asking for a reward: {type(error).__name__}"
            raise self._stop(reason) from None

    def _started(self) -> Settings:
        import httpx

        with self.lock:
            if self.settings is None:
                self.settings = settings_from(self.environment)
                # At its own level it logs every address whole, with its password.
                logging.getLogger("httpx").setLevel(logging.WARNING)
                self.http = httpx.Client(limits=httpx.Limits(max_connections=None))
            return self.settings

    def _patiently(self, settings: Settings, body: bytes) -> dict[str, Any]:
        start, pause = self.clock(), FIRST_PAUSE
        end, turn = start + settings.patience_s, next(self.turns)
        for tries in itertools.count(1):
            if self.stopped is not None:
                break
            url = settings.urls[(turn + tries - 1) % len(settings.urls)]
            # A sleep may overrun.
            left = max(0.1, end - self.clock())
            try:
                return self._once(url, body, min(settings.timeout_s, left))
            except _LostError as lost:
                # By chance in part, so that requests that failed together do not return together.
                wait = pause * random.uniform(0.5, 1.0)
                if self.clock() + wait >= end:
                    raise ServerError(
                        f"no reward in {self.clock() - start:,.1f} s (tries: {tries}, the last at {_public(url)}: "
                        f"{lost}). See that the endpoint runs and keeps up, or raise {PATIENCE}, and run again."
                    ) from None
            self.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise ServerError("another call has given up")

    def _once(self, url: str, body: bytes, timeout: float) -> dict[str, Any]:
        import httpx

        try:
            headers = {"Content-Type": "application/json"}
            response = self.http.post(url, content=body, headers=headers, timeout=timeout)
        except httpx.RequestError as error:
            raise _LostError(f"no answer ({type(error).__name__})") from None
        if response.status_code in REPEATED:
            raise _LostError(f"HTTP {response.status_code}")
        try:
            if not response.is_success:
                raise ValueError(f"it answers HTTP {response.status_code}")
            return _read(response.content)
        except ValueError as fault:
            raise ServerError(
                f"{_public(url)} gives no reward: {fault}. Mend the endpoint or correct {URLS}, and run again."
            ) from None

    def _stop(self, reason: str) -> RewardStopped:
        with self.lock:
            if self.stopped is None:
                self.stopped = reason + _write_failure(reason, self.environment.get(FAILURE))
            return RewardStopped(self.stopped)

    def close(self) -> None:
        """Close all connections."""
        if self.settings is not None:
            self.http.close()


def _public(url: str) -> str:
    """An address without its password and its query, which may hold a key."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def _read(content: bytes) -> dict[str, Any]:
    """A reply of one reward; `ValueError` says by names, types and lengths alone what is wrong with it."""
    try:
        # An integer of any length becomes a float, infinite at worst.
        reply = json.loads(content, parse_int=float)
    except (ValueError, RecursionError):
        raise ValueError(f"its reply of {len(content)} bytes is no JSON") from None
    if not isinstance(reply, dict) or "rewards" not in reply:
        raise ValueError('its reply has no "rewards"')
    scores, extra_logs = reply.get("scores"), reply.get("extra_logs") or {}
    if not isinstance(extra_logs, dict):
        raise ValueError(f"extra_logs is a {type(extra_logs).__name__}, not an object")
    return {
        "rewards": _only("rewards", reply["rewards"]),
        "scores": _only("scores", reply["rewards"] if scores is None else scores),
        "extra_logs": {name: _only("a list in extra_logs", values) for name, values in extra_logs.items()},
    }


def _only(name: str, values: Any) -> float:
    if not isinstance(values, list):
        raise ValueError(f"{name} is a {type(values).__name__}, not a list")
    if len(values) != 1:
        raise ValueError(f"{name} holds {len(values)} values, not 1")
    (value,) = values
    if not isinstance(value, float):
        raise ValueError(f"{name} holds a {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} holds a number that is NaN or infinite")
    return value


def _write_failure(reason: str, path: str | None) -> str:
    """Write the reason down for who started the run, whole or not at all; give what to add if that fails."""
    if path:
        partial = Path(f"{path}.{uuid4().hex}.partial")
        try:
            partial.write_text(json.dumps({"error": reason}) + "\n")
            os.replace(partial, path)
        except OSError as error:
            return f" ({FAILURE} = {path} cannot be written: {type(error).__name__})"
    return ""


_client = RewardClient(os.environ)


def reward_func(queries: list[str], prompts: list[str], labels: list[str], **_: Any) -> dict[str, Any]:
    """The reward of one response, {"rewards": float, "scores": float, "extra_logs": {name: float}}.

    Args:
        queries: prompt and response, one text, special tokens kept. prompts, labels: one text each.

    Raises:
        RewardStopped: no reward can be had, now or at an earlier call of this process; RAMO_REWARD_FAILURE says why.
    """
    return _client.ask(queries, prompts, labels)
