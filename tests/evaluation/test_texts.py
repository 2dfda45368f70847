from html import escape
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.evaluation.texts import clean, excerpt, fair_limit, page_bytes

any_text = st.text(st.characters(exclude_categories=()), max_size=60)
"""Every code point, lone surrogates among them."""


def test_clean_shows_what_a_page_cannot_carry() -> None:
    assert clean("a\x00b\x1b\x7f\ud800\x85\uffff") == "a␀b␛␡\ufffd\ufffd\ufffd"


def test_clean_keeps_ordinary_texts() -> None:
    text = "Grüße, 你好, 😀\tand\na line <b>&"
    assert clean(text) == text
    assert clean("one\r\ntwo") == "one\ntwo"


@given(any_text)
def test_cleaned_text_is_valid_utf8_and_xml(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert ElementTree.fromstring(f"<t>{escape(cleaned)}</t>").text == (cleaned or None)
    assert clean(cleaned) == cleaned


@given(any_text, st.integers(0, 200))
def test_excerpt_is_the_longest_beginning_that_fits(text: str, limit: int) -> None:
    kept, left_out = excerpt(text, limit)
    assert text.startswith(kept)
    assert len(kept) + left_out == len(text)
    assert page_bytes(kept) <= limit
    assert left_out == 0 or page_bytes(text[: len(kept) + 1]) > limit or text[len(kept) - 1 : len(kept) + 1] == "\r\n"


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 300))
def test_fair_limit_is_the_largest_that_keeps_the_budget(sizes: list[int], budget: int) -> None:
    fitting = [limit for limit in range(52) if sum(min(size, limit) for size in sizes) <= budget]
    uncut = max(sizes, default=0)
    assert fair_limit(sizes, budget) == min(max(fitting), uncut)


def test_only_the_longest_are_cut() -> None:
    assert fair_limit([10, 10, 1000], 100) == 80
