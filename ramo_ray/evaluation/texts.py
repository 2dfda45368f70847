"""Texts of a run made fit for a page: visible stand-ins for what UTF-8 or HTML cannot carry, and a fair cut.

Escaping is the template's work; it happens after this.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

REPLACEMENT = 0xFFFD

# Control pictures (U+2400 …) show that there was a control character, and which.
_STAND_INS: dict[int, int] = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_STAND_INS[0x7F] = 0x2421
_STAND_INS.update(dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), REPLACEMENT))


class Excerpt(NamedTuple):
    """The beginning of a text, and how many characters were left out behind it."""

    text: str
    left_out: int


def clean(text: str) -> str:
    """Replace control characters, lone surrogates and the like, so that the text is valid UTF-8, HTML and XML."""
    return text.replace("\r\n", "\n").translate(_STAND_INS)


def page_bytes(text: str) -> int:
    """Bytes that a text takes on the page."""
    return len(escape(clean(text)).encode("utf-8"))


def excerpt(text: str, limit: int) -> Excerpt:
    """Cut a text to the longest beginning that takes at most `limit` bytes on the page."""
    if page_bytes(text) <= limit:
        return Excerpt(text, 0)
    kept = bisect_right(range(len(text)), limit, key=lambda length: page_bytes(text[:length])) - 1
    return Excerpt(text[:kept], len(text) - kept)


def fair_limit(sizes: Sequence[int], budget: int) -> int:
    """Find the largest limit for which the sizes, each cut to it, sum to at most `budget`: only the longest are cut."""
    ordered = sorted(sizes)
    for position, size in enumerate(ordered):
        share = budget // (len(ordered) - position)
        if size > share:
            return share
        budget -= size
    return ordered[-1] if ordered else 0
