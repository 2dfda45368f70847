"""Who may ask: bearer tokens in a file, which may change while the server runs."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from pathlib import Path

from ramo_ray.errors import ConfigError

SHORTEST = 16
"""Characters of a token. What can be guessed is none."""
LOOK_S = 1.0
"""Between two looks at the file."""


class TokenFile:
    """The tokens of a file, one a line; empty lines and those that begin with # are left out.

    A file that is gone or spoilt while the server runs leaves the tokens as they were last.

    Raises:
        ConfigError: the file cannot be read, holds no token, or one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._stamped()
        self._tokens = self._read()
        self._looked = time.monotonic()

    def allows(self, authorization: str) -> bool:
        """Whether a request's Authorization header holds one of the tokens.

        `Bearer TOKEN`, or `Basic` with the token as password, for clients that can only be given an address.
        """
        self._look()
        given = _token_of(authorization).encode()
        # All of them, so that the time tells nothing of which.
        return sum([hmac.compare_digest(given, token) for token in self._tokens]) > 0

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._tokens = self._read()
                self._stamp = stamp
        except ConfigError:
            # Perhaps it is being written.
            return

    def _stamped(self) -> tuple[int, int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise ConfigError(f"`tokens_file` = {self.path}: cannot be read: {error.strerror}.") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[bytes]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`tokens_file` = {self.path}: cannot be read: {type(error).__name__}.") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not tokens:
            raise ConfigError(f"`tokens_file` = {self.path}: holds no token; write one a line.")
        if short := [number for number, token in enumerate(tokens, 1) if len(token) < SHORTEST]:
            raise ConfigError(
                f"`tokens_file` = {self.path}: token {short[0]} has fewer than {SHORTEST} characters; make one with "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`."
            )
        return [token.encode() for token in tokens]


def _token_of(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
