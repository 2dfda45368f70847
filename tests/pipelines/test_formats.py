"""Rows of sources: each accepted form becomes the same trio, each other row a reason that quotes none of its text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core.records import Message, first_is_a, prompt_id, trio_id
from ramo_ray.pipelines.formats import as_prompt, detect, to_trio

MAX = 32_000
QUESTION: Message = {"role": "user", "content": "How do I boil an egg?"}
GOOD, BAD = "Put it into boiling water.", "Eggs are hard."
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


def answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "strings": ("preference", {"prompt": QUESTION["content"], "chosen": GOOD, "rejected": BAD}),
    "conversational": ("preference", {"prompt": [QUESTION], "chosen": answer(GOOD), "rejected": answer(BAD)}),
    "implicit prompt": (
        "preference",
        {"chosen": [QUESTION, *answer(GOOD)], "rejected": [QUESTION, *answer(BAD)]},
    ),
    "prompt is null": (
        "preference",
        {"prompt": None, "chosen": [QUESTION, *answer(GOOD)], "rejected": [QUESTION, *answer(BAD)]},
    ),
    "marks": (
        "hh_rlhf",
        {
            "chosen": f"\n\nHuman: {QUESTION['content']}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {QUESTION['content']}\n\nAssistant: {BAD}",
        },
    ),
    "trio": ("trio", {"prompt": QUESTION["content"], "response_a": GOOD, "response_b": BAD, "label": 0}),
}


def chosen_of(trio: dict[str, Any]) -> str:
    return str(trio[("response_a", "response_b")[trio["label"]]])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_trio(form: str) -> None:
    kind, row = FORMS[form]
    assert detect(row) == kind
    trio = to_trio(row, kind, MAX)  # type: ignore[arg-type]
    assert trio["prompt"] == [QUESTION]
    assert {trio["response_a"], trio["response_b"]} == {GOOD, BAD}
    assert chosen_of(trio) == GOOD
    assert trio["prompt_id"] == prompt_id([QUESTION])
    assert trio["trio_id"] == trio_id(trio["prompt_id"], GOOD, BAD)


def test_several_turns_and_a_system_message() -> None:
    shared: list[Message] = [QUESTION, *answer("Why?"), {"role": "user", "content": "For breakfast."}]
    marked = "\n\nHuman: How do I boil an egg?\n\nAssistant: Why?\n\nHuman: For breakfast.\n\nAssistant: "
    hh = to_trio({"chosen": marked + GOOD, "rejected": marked + BAD}, "hh_rlhf", MAX)
    assert hh["prompt"] == shared
    system: Message = {"role": "system", "content": "Be brief."}
    row = {"chosen": [system, *shared, *answer(GOOD)], "rejected": [system, *shared, *answer(BAD)]}
    assert to_trio(row, "preference", MAX)["prompt"] == [system, *shared]


def test_a_mark_counts_at_the_start_of_a_paragraph_only() -> None:
    start = "\n\nHuman: Who speaks? Human: or\nAssistant: ?\n\nAssistant: "
    trio = to_trio({"chosen": start + "Assistant: I.", "rejected": start + "Human: you."}, "hh_rlhf", MAX)
    assert trio["prompt"] == [{"role": "user", "content": "Who speaks? Human: or\nAssistant: ?"}]
    assert chosen_of(trio) == "Assistant: I."


def test_control_tokens_and_braces_are_text() -> None:
    odd = "<|im_start|>system\nYou are {answer}.<|im_end|> </s> {{ x }} {0}"
    trio = to_trio({"prompt": odd, "response_a": odd + "1", "response_b": odd + "2"}, "trio", MAX)
    assert trio["prompt"][0]["content"] == odd
    assert trio["response_a"] == odd + "1"


# Which response is A


@given(texts, texts, texts)
def test_the_hash_gives_the_sides_not_the_choice(prompt: str, one: str, other: str) -> None:
    if one == other:
        return
    trio = to_trio({"prompt": prompt, "chosen": one, "rejected": other}, "preference", 10**6)
    swapped = to_trio({"prompt": prompt, "chosen": other, "rejected": one}, "preference", 10**6)
    assert (trio["response_a"], trio["response_b"]) == (swapped["response_a"], swapped["response_b"])
    assert (trio["response_a"] == min(one, other)) == first_is_a(trio["trio_id"])
    assert chosen_of(trio) == one
    assert chosen_of(swapped) == other
    assert trio["label"] == 1 - swapped["label"]


def test_the_chosen_response_is_a_half_of_the_time() -> None:
    rows = [{"prompt": f"p{n}", "chosen": "yes", "rejected": "no"} for n in range(1000)]
    labels = [to_trio(row, "preference", MAX)["label"] for row in rows]
    assert 430 < sum(labels) < 570


@pytest.mark.parametrize("label", [0, 1, None, 0.0, 1.0])
def test_a_trio_keeps_its_sides_its_label_and_its_sources(label: float | None) -> None:
    row = {
        "prompt": "x", "response_a": "first", "response_b": "second", "label": label, "source_a": "m1", "source_b": 7
    }  # fmt: skip
    trio = to_trio(row, "trio", MAX)
    assert (trio["response_a"], trio["response_b"]) == ("first", "second")
    assert trio["label"] == label
    assert (trio["source_a"], trio["source_b"]) == ("m1", "7")


def test_a_trio_without_a_label_has_none() -> None:
    trio = to_trio({"prompt": "x", "response_a": "first", "response_b": "second"}, "trio", MAX)
    assert trio["label"] is None
    assert trio["source_a"] == ""


# Detection


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"chosen": "a"},
        {"prompt": "a", "response_a": "b"},
        {"chosen": None, "rejected": "b"},
        {"chosen": "plain", "rejected": "text"},
        {"text": "a", "label": 0},
    ],
)
def test_a_row_that_tells_nothing(row: dict[str, Any]) -> None:
    assert detect(row) is None


def test_columns_more_do_not_disturb() -> None:
    assert detect({"id": 3, "prompt": "a", "chosen": "b", "rejected": "c"}) == "preference"


# Reasons for quarantine

PAIR = {"chosen": GOOD, "rejected": BAD}
TRIO = {"prompt": "x", "response_a": GOOD, "response_b": BAD}
SHARED = "\n\nHuman: Hi.\n\nAssistant: "
REASONS: list[tuple[str, Any, str]] = [
    ("preference", {"prompt": "x", "chosen": "a"}, "`rejected` is missing"),
    ("preference", {"prompt": "x", "chosen": None, "rejected": "a"}, "`chosen` is missing"),
    ("preference", PAIR, "`prompt` is missing and chosen and rejected are plain text"),
    ("preference", {"prompt": "x", "chosen": "", "rejected": "a"}, "chosen: response is blank"),
    ("preference", {"prompt": "x", "chosen": "a", "rejected": " \n"}, "rejected: response is blank"),
    ("preference", {"prompt": "x", "chosen": 7, "rejected": "a"}, "`chosen` is a int, not text or a list of messages"),
    ("preference", {"prompt": "x", "chosen": "a\0b", "rejected": "a"}, "chosen: response holds a NUL character"),
    ("preference", {"prompt": "x", "chosen": "a", "rejected": "\ud800"}, "rejected: response holds a lone surrogate"),
    ("preference", {"prompt": "\udc00", **PAIR}, r"prompt\[0\] holds a lone surrogate"),
    ("preference", {"prompt": "a\0", **PAIR}, r"prompt\[0\] holds a NUL"),
    ("preference", {"prompt": " ", **PAIR}, "prompt ends with a blank turn"),
    ("preference", {"prompt": [], **PAIR}, "prompt has no messages"),
    ("preference", {"prompt": 3, **PAIR}, "`prompt` is a int"),
    ("preference", {"prompt": ["x"], **PAIR}, "`prompt` holds a message without role and content"),
    ("preference", {"prompt": [{"role": "user"}], **PAIR}, "`prompt` holds a message without role and content"),
    ("preference", {"prompt": [{"role": "user", "content": None}], **PAIR}, r"prompt\[0\] is missing"),
    ("preference", {"prompt": [{"role": "user", "content": [{"type": "image"}]}], **PAIR}, "not a string but a list"),
    ("preference", {"prompt": [{"role": "tool", "content": "x"}], **PAIR}, "unknown role 'tool'; known: system, user"),
    ("preference", {"prompt": [{"role": [], "content": "x"}], **PAIR}, "unknown role"),
    ("preference", {"prompt": [QUESTION, *answer("b")], **PAIR}, "does not end with a user's turn"),
    ("preference", {"prompt": [QUESTION, {"role": "system", "content": "b"}, QUESTION], **PAIR}, "system message"),
    ("preference", {"prompt": "x", "chosen": [QUESTION], "rejected": "a"}, "`chosen` must hold one assistant message"),
    ("preference", {"prompt": "x", "chosen": answer("a") * 2, "rejected": "a"}, "must hold one assistant message"),
    ("preference", {"chosen": [QUESTION, *answer("a")], "rejected": "a"}, "`prompt` is missing and"),
    ("preference", {"chosen": answer("a"), "rejected": answer("b")}, "do not end with an assistant's turn"),
    ("preference", {"chosen": [], "rejected": []}, "do not end with an assistant's turn"),
    (
        "preference",
        {"chosen": [QUESTION, {"role": [], "content": "a"}], "rejected": [QUESTION, *answer("b")]},
        "do not end with an assistant's turn",
    ),
    (
        "preference",
        {"chosen": [QUESTION, *answer("a")], "rejected": [QUESTION, QUESTION, *answer("b")]},
        "differ before their last turn",
    ),
    ("hh_rlhf", {"chosen": SHARED + "a", "rejected": SHARED.replace("Hi", "Ho") + "b"}, "differ before their last"),
    ("hh_rlhf", {"chosen": SHARED, "rejected": SHARED + "b"}, "chosen: response is blank"),
    ("hh_rlhf", {"chosen": SHARED + "a"}, "`rejected` is missing"),
    ("hh_rlhf", {"chosen": "Human: x" + SHARED + "a", "rejected": SHARED + "b"}, "does not begin with a turn marked"),
    ("hh_rlhf", {"chosen": "", "rejected": SHARED + "b"}, "does not begin with a turn marked"),
    ("hh_rlhf", {"chosen": [QUESTION], "rejected": SHARED + "b"}, "`chosen` is a list, not text"),
    ("hh_rlhf", {"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: y"}, "do not end with an assistant's turn"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"}, "do not end with an assistant's turn"),
    ("trio", {"prompt": "x", "response_a": "a"}, "`response_b` is missing"),
    ("trio", {"response_a": "a", "response_b": "b"}, "`prompt` is missing"),
    ("trio", TRIO | {"label": 2}, r"`label` must be 0 \(A is better\), 1 \(B is better\) or null"),
    ("trio", TRIO | {"label": -1}, "`label` must be"),
    ("trio", TRIO | {"label": True}, "`label` must be"),
    ("trio", TRIO | {"label": "0"}, "`label` must be"),
    ("trio", TRIO | {"label": float("nan")}, "`label` must be"),
    ("trio", TRIO | {"label": []}, "`label` must be"),
    ("trio", TRIO | {"response_a": ["a"]}, "response_a: response is not a string but a list"),
    ("trio", TRIO | {"response_b": GOOD}, "the two responses are identical"),
    ("trio", [1, 2], "the row is a list, not an object with named fields"),
    ("trio", "text", "the row is a str"),
    ("trio", None, "the row is a NoneType"),
]


@pytest.mark.parametrize(("kind", "row", "reason"), REASONS, ids=[f"{i}-{k}" for i, (k, _, _) in enumerate(REASONS)])
def test_a_row_that_cannot_be_used_says_why(kind: Any, row: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        to_trio(row, kind, MAX)
    message = str(caught.value)
    assert GOOD not in message
    assert QUESTION["content"] not in message
    message.encode("utf-8")


@pytest.mark.parametrize("place", ["prompt", "response_a", "response_b"])
def test_a_text_of_100_000_characters_is_too_long(place: str) -> None:
    with pytest.raises(ValueError, match=r"too long: 100,000 characters in one text, source.max_chars allows 32,000"):
        to_trio(TRIO | {place: "x" * 100_000}, "trio", MAX)
    assert to_trio(TRIO | {place: "x" * MAX}, "trio", MAX)[place]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "user", ""]), below, max_size=3)
    ),
    max_leaves=8,
)
columns = ["prompt", "chosen", "rejected", "response_a", "response_b", "label", "source_a"]


@given(st.dictionaries(st.sampled_from(columns), json_values) | json_values)
def test_no_row_ends_a_run(row: Any) -> None:
    if isinstance(row, dict):
        detect(row)
    for kind in ("preference", "hh_rlhf", "trio"):
        try:
            trio = to_trio(row, kind, MAX)  # type: ignore[arg-type]
        except ValueError:
            continue
        assert trio["label"] in (0, 1, None)
        assert trio["response_a"] != trio["response_b"]


def test_prompts_of_both_forms() -> None:
    assert as_prompt("Hi.") == [{"role": "user", "content": "Hi."}]
    assert as_prompt([QUESTION | {"name": "x"}]) == [QUESTION]


def test_a_prompt_beside_whole_dialogues_is_not_needed() -> None:
    turns = [{"role": "user", "content": "Hi."}]
    row = {
        "prompt": "Hi.",
        "chosen": [*turns, {"role": "assistant", "content": "Hello."}],
        "rejected": [*turns, {"role": "assistant", "content": "No."}],
    }
    trio = to_trio(row, "preference", 1000)
    assert trio["prompt"] == turns
    assert {trio["response_a"], trio["response_b"]} == {"Hello.", "No."}
