import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core import records

texts = st.text(max_size=30)


def as_documented(*parts: object) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=12).hexdigest()


def test_ids_are_hashes_of_content():
    prompt = [{"role": "user", "content": "Why?"}]
    assert records.rule_id("Be kind.") == as_documented("rule", "Be kind.")
    assert records.prompt_id(prompt) == as_documented("prompt", [["user", "Why?"]])
    assert records.conversation_id("p", "Because.") == as_documented("conversation", "p", "Because.")
    assert records.trio_id("p", "b", "a") == as_documented("trio", "p", ["a", "b"])


def test_ids_do_not_change_between_versions():
    # Stored results are joined by these: a change here orphans every run on disk.
    assert records.rule_id("Accept the response that is kind.") == "43e38814246eabd807370c06"
    assert records.trio_id("p", "one", "two") == "dd79fd1b9b79287fd03eb5d1"


def test_a_prompt_id_ignores_other_keys_of_a_message_and_their_order():
    plain = [{"role": "user", "content": "Why?"}]
    assert records.prompt_id([{"content": "Why?", "role": "user", "name": "x"}]) == records.prompt_id(plain)
    assert records.prompt_id([{"role": "system", "content": "Why?"}]) != records.prompt_id(plain)


def test_part_boundaries_count():
    assert records.content_hash("ab", "c") != records.content_hash("a", "bc")


@given(texts, texts)
def test_different_texts_have_different_ids(one: str, other: str):
    assert (records.rule_id(one) == records.rule_id(other)) == (one == other)


def test_a_lone_surrogate_has_an_id():
    assert len(records.conversation_id("p", "\ud800")) == 24


def test_a_fingerprint_does_not_depend_on_key_order():
    assert records.fingerprint(a=1, b="x") == records.fingerprint(b="x", a=1)
    assert records.fingerprint(a=1, b="x") != records.fingerprint(a=1, b="y")


@given(texts, texts, texts)
def test_a_trio_and_its_swap_are_one(prompt: str, one: str, other: str):
    assert records.trio_id(prompt, one, other) == records.trio_id(prompt, other, one)


@given(texts, texts)
def test_unit_interval_holds_zero_and_not_one(identifier: str, salt: str):
    assert 0 <= records.unit_interval(identifier, salt) < 1


def test_unit_interval_is_uniform_and_independent_between_salts():
    ids = [records.rule_id(str(n)) for n in range(4000)]
    first, second = ([records.unit_interval(i, salt) for i in ids] for salt in ("one", "two"))
    quarters = [sum(k / 4 <= x < (k + 1) / 4 for x in first) for k in range(4)]
    # 1000 are expected in each; the standard deviation is 27.
    assert all(abs(count - 1000) < 120 for count in quarters)
    both_low = sum(x < 0.5 and y < 0.5 for x, y in zip(first, second, strict=True))
    assert abs(both_low - 1000) < 120


def test_first_is_a_is_balanced():
    sides = [records.first_is_a(records.trio_id("p", "one", str(n))) for n in range(4000)]
    # 2000 are expected; the standard deviation is 32.
    assert abs(sum(sides) - 2000) < 140


@pytest.mark.parametrize("identifier", ["", "a", "é", "x" * 1000])
def test_first_is_a_is_a_bit_of_unit_interval(identifier: str):
    assert records.first_is_a(identifier) == (records.unit_interval(identifier, "side") < 0.5)
