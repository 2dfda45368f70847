"""The records that a run reads and writes, and the ids that tie them together.

An id is a hash of content: the same conversation has the same id in every run and on every machine, so
results join, resume and deduplicate without a counter or a database. The Parquet schemas that mirror these
records are in `ramo_ray.pipelines.tables`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

ID_BYTES = 12
"""96 bits: among 10^9 records a collision has probability 6e-12."""


class Message(TypedDict):
    """One turn of a dialogue, in the chat format of transformers and TRL."""

    role: str
    content: str


Prompt = Sequence[Message]


class Rating(NamedTuple):
    """A judge's answer on one rule for one conversation (Appendix D).

    `score` lies in [−1, 1] with three labels and in [0, 1] otherwise. `p_yes`, `p_no` and `p_irrelevant` are
    normalised over the labels asked for and sum to 1; None are those that the method does not ask for. `label_mass`
    is the share of probability, over everything that the judge might write, that the answers asked for held.
    """

    score: float
    p_yes: float | None
    p_no: float | None
    p_irrelevant: float | None
    label_mass: float


def content_hash(*parts: Any) -> str:
    """Hash JSON-able parts to 24 hexadecimal digits. Key order does not matter, part boundaries do.

    Lone surrogates hash too (they are escaped), so that even a row bound for quarantine has an id.
    """
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=ID_BYTES).hexdigest()


def fingerprint(**parts: Any) -> str:
    """Hash everything that a result depends on, so that results of different origin never mix."""
    return content_hash("fingerprint", parts)


def rule_id(text: str) -> str:
    """Id of a rule: the hash of its text."""
    return content_hash("rule", text)


def prompt_id(prompt: Prompt) -> str:
    """Id of a prompt: the hash of its messages' roles and contents."""
    return content_hash("prompt", [[m["role"], m["content"]] for m in prompt])


def conversation_id(prompt: str, response: str) -> str:
    """Id of a conversation, from its prompt's *id* and the response's text."""
    return content_hash("conversation", prompt, response)


def trio_id(prompt: str, response_a: str, response_b: str) -> str:
    """Id of a trio, from its prompt's *id* and the two responses in either order."""
    return content_hash("trio", prompt, sorted((response_a, response_b)))


def unit_interval(identifier: str, salt: str = "") -> float:
    """Map an id to a number in [0, 1) that is uniform over ids and independent between salts."""
    digest = hashlib.blake2b(f"{salt}:{identifier}".encode(), digest_size=8).digest()
    # 53 bits are what a float holds exactly; with 64 the result could round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def first_is_a(trio: str) -> bool:
    """Whether the smaller of a trio's two responses (as strings) becomes response A.

    A bit of the trio's hash decides, never the order in the source: where a source lists the chosen response
    first, position would otherwise leak the label. It is the same for a pair and its swap.
    """
    return unit_interval(trio, "side") < 0.5
