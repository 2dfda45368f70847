"""Who may ask: bearer tokens in a file, which may change while the server runs."""

from __future__ import annotations

import base64
import hmac
import logging
import time
from pathlib import Path

from ramo_ray.errors import ConfigError

logger = logging.getLogger(__name__)
SHORTEST = 16
"""Characters of a token. What can be guessed is none."""
LOOK_S = 1.0
"""Between two looks at the file."""


class TokenFile:
    """The tokens of a file, one a line; empty lines and those that begin with # are left out.

    While the server runs, a token that leaves the file is known no more, at once; a line that is too short for one is
    left out, with a warning. A file that cannot be read leaves the tokens as they were, with a warning. Replace it
    whole (`mv`), rather than write into it.

    Raises:
        ConfigError: the file cannot be read, holds no token, or one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._stamped()
        self._tokens, short = self._read()
        if short:
            raise ConfigError(
                f"`tokens_file` = {path}: line {short[0]} has fewer than {SHORTEST} characters; make a token with "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`."
            )
        if not self._tokens:
            raise ConfigError(f"`tokens_file` = {path}: holds no token; write one a line.")
        self._looked, self._gone = time.monotonic(), False

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
            if stamp == self._stamp:
                return
            self._tokens, short = self._read()
        except ConfigError as error:
            if not self._gone:
                logger.warning("%s The tokens of before stay.", error)
            self._gone = True
            return
        self._stamp, self._gone = stamp, False
        logger.warning(
            "tokens were read again: %d of them%s",
            len(self._tokens),
            f"; too short to be one: lines {', '.join(map(str, short))}" if short else "",
        )

    def _stamped(self) -> tuple[int, int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise ConfigError(f"`tokens_file` = {self.path}: cannot be read: {error.strerror}.") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> tuple[list[bytes], list[int]]:
        """The tokens, and the numbers of lines that are too short for one."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`tokens_file` = {self.path}: cannot be read: {type(error).__name__}.") from None
        given = {number: line.strip() for number, line in enumerate(lines, 1)}
        tokens = {number: text for number, text in given.items() if text and not text.startswith("#")}
        long = [text.encode() for text in tokens.values() if len(text) >= SHORTEST]
        return long, [number for number, text in tokens.items() if len(text) < SHORTEST]


def _token_of(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
        except ValueError:
            # No base64, not even its characters, or no UTF-8.
            return ""
    return ""
