"""The page on which a person compares two responses. It needs nothing but this server, and may reach nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Page(NamedTuple):
    """The document, and the headers that keep it to itself."""

    html: str
    headers: dict[str, str]


@cache
def page() -> Page:
    """Read the page; its own script and style are all that it may run."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    allowed = {kind: _hash_of(html, kind) for kind in ("script", "style")}
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {allowed['script']}; style-src {allowed['style']}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(
        html,
        {
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        },
    )


def _hash_of(html: str, kind: str) -> str:
    (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
