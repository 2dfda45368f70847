"""What a row of a preference source may look like, and how it becomes a trio or a reason for quarantine.

Four shapes are read: TRL's preference format (strings, or messages; with the prompt in a column of its own or
shared by both dialogues), HH-RLHF's marked dialogues, and a plain trio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ramo_ray.core.prompts import check_prompt, check_response
from ramo_ray.core.records import Message, first_is_a, prompt_id, trio_id

Format = Literal["preference", "hh_rlhf", "trio"]
_MARKS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
EXPECTED = "the columns chosen and rejected (and prompt), or prompt, response_a and response_b"


class Pair(NamedTuple):
    """Two responses to a prompt. `label` is 0 where the first was chosen by a human, 1 the second, None unknown.

    `ordered` says that the source gave the sides; otherwise the trio's hash gives them.
    """

    prompt: list[Message]
    first: str
    second: str
    label: int | None
    ordered: bool
    source_first: str = ""
    source_second: str = ""


def detect(row: Mapping[str, Any]) -> Format | None:
    """Tell the format from a row's columns, or None where the row has no such columns, or too little in them."""
    if {"prompt", "response_a", "response_b"} <= row.keys():
        return "trio"
    if {"chosen", "rejected"} <= row.keys():
        if row.get("prompt") is not None or isinstance(row["chosen"], list):
            return "preference"
        if isinstance(row["chosen"], str) and any(mark in row["chosen"] for mark in _MARKS):
            return "hh_rlhf"
    return None


def to_trio(row: Any, kind: Format, max_chars: int) -> dict[str, Any]:
    """Turn a source's row into the columns of a trio.

    Raises:
        ValueError: with the reason for quarantine, in one phrase and without any of the row's text.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"the row is a {type(row).__name__}, not an object with named fields")
    pair = {"preference": _preference, "hh_rlhf": _hh_rlhf, "trio": _trio}[kind](row)
    check_prompt(pair.prompt)
    for name, text in (("first", pair.first), ("second", pair.second)):
        try:
            check_response(text)
        except ValueError as error:
            raise ValueError(f"{_side(pair, name)}: {error}") from None
    length = max(sum(len(m["content"]) for m in pair.prompt), len(pair.first), len(pair.second))
    if length > max_chars:
        raise ValueError(f"too long: {length:,} characters in one text, source.max_chars allows {max_chars:,}")
    if pair.first == pair.second:
        raise ValueError("the two responses are identical")
    return _trio_columns(pair)


def _side(pair: Pair, name: str) -> str:
    return (
        {"first": "response_a", "second": "response_b"}[name]
        if pair.ordered
        else {"first": "chosen", "second": "rejected"}[name]
    )


def _trio_columns(pair: Pair) -> dict[str, Any]:
    prompt = prompt_id(pair.prompt)
    trio = trio_id(prompt, pair.first, pair.second)
    swap = not pair.ordered and (pair.first < pair.second) != first_is_a(trio)
    sides = [(pair.first, pair.source_first), (pair.second, pair.source_second)]
    (response_a, source_a), (response_b, source_b) = reversed(sides) if swap else sides
    return {
        "trio_id": trio,
        "prompt_id": prompt,
        "prompt": pair.prompt,
        "response_a": response_a,
        "response_b": response_b,
        "source_a": source_a,
        "source_b": source_b,
        "label": pair.label if pair.label is None or not swap else 1 - pair.label,
    }


def _field(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise ValueError(f"`{name}` is missing")
    return value


def as_prompt(value: Any) -> list[Message]:
    """A plain string is one user message; a list is messages, taken as they are (see `check_prompt`)."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return _messages(value, "prompt")


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is a {type(value).__name__}, not text or a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"`{name}` holds a message without role and content")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _preference(row: Mapping[str, Any]) -> Pair:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if row.get("prompt") is not None and not (_is_dialogue(chosen) and _is_dialogue(rejected)):
        prompt = as_prompt(row["prompt"])
        return Pair(prompt, _answer(chosen, "chosen"), _answer(rejected, "rejected"), 0, ordered=False)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("`prompt` is missing and chosen and rejected are plain text")
    return _split_dialogues(_messages(chosen, "chosen"), _messages(rejected, "rejected"))


def _is_dialogue(value: Any) -> bool:
    """Whether this holds more than an answer: then its shared turns are the prompt, whatever `prompt` repeats of it."""
    return isinstance(value, list) and len(value) > 1


def _answer(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"`{name}` must hold one assistant message beside a prompt")
    return messages[0]["content"]


def _split_dialogues(chosen: list[Message], rejected: list[Message]) -> Pair:
    """The shared turns are the prompt, the last turns the two responses."""
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("the two dialogues differ before their last turn")
    if len(chosen) < 2 or (chosen[-1]["role"], rejected[-1]["role"]) != ("assistant",) * 2:
        raise ValueError("the dialogues do not end with an assistant's turn that answers a user's")
    return Pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], 0, ordered=False)


def _hh_rlhf(row: Mapping[str, Any]) -> Pair:
    return _split_dialogues(_dialogue(_field(row, "chosen"), "chosen"), _dialogue(_field(row, "rejected"), "rejected"))


def _dialogue(text: Any, name: str) -> list[Message]:
    """Read HH-RLHF's marked turns. A mark counts at the start of a paragraph only."""
    if not isinstance(text, str):
        raise ValueError(f"`{name}` is a {type(text).__name__}, not text")
    starts = sorted((at, mark) for mark in _MARKS for at in _find_all(text, mark))
    if not starts or starts[0][0] != 0:
        raise ValueError(f"`{name}` does not begin with a turn marked Human or Assistant")
    ends = [at for at, _ in starts[1:]] + [len(text)]
    return [
        {"role": _MARKS[mark], "content": text[at + len(mark) : end].strip()}
        for (at, mark), end in zip(starts, ends, strict=True)
    ]


def _find_all(text: str, mark: str) -> list[int]:
    found, at = [], text.find(mark)
    while at >= 0:
        found.append(at)
        at = text.find(mark, at + 1)
    return found


def _trio(row: Mapping[str, Any]) -> Pair:
    label = row.get("label")
    if label is not None and (isinstance(label, bool) or label not in (0, 1)):
        raise ValueError("`label` must be 0 (A is better), 1 (B is better) or null")
    return Pair(
        as_prompt(_field(row, "prompt")),
        _field(row, "response_a"),
        _field(row, "response_b"),
        None if label is None else int(label),
        ordered=True,
        source_first=_name(row.get("source_a")),
        source_second=_name(row.get("source_b")),
    )


def _name(value: Any) -> str:
    """A source's name as text that Arrow can hold (no lone surrogate)."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode("utf-8")
