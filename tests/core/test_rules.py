import hashlib
import re
from pathlib import Path

import pytest

from ramo_ray.core.records import rule_id
from ramo_ray.core.rules import load_pool, make_pool, strip_prefix
from ramo_ray.errors import ConfigError, RulePoolError

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper" / "paper.txt"


def written(folder: Path, text: str) -> str:
    file = folder / "pool.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_the_papers_pool_word_for_word():
    pool = load_pool()
    assert len(pool) == 100
    assert pool.texts[0] == "Accept the response that are not perceived as rude or demeaning."
    assert pool.texts[45] == "Accept the response that offers practicality and ease of use."
    assert pool.texts[99] == "Accept the response that works against the spread of hate and bigotry."
    digest = hashlib.sha256("\n".join(pool.texts).encode()).hexdigest()
    assert digest == "0328a7ac4abb264539c835b1b1129875c1ce64eb5be6bb965e575cd4af1aaa98"


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_the_papers_pool_against_the_papers_text():
    rows = re.findall(r"^(\d+)\t(Accept .*)$", PAPER.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(str(rule.index), rule.text) for rule in load_pool().rules] == rows


def test_a_rule_is_found_by_its_id():
    pool = load_pool()
    assert [rule.index for rule in pool.rules] == list(range(100))
    assert pool.ids[7] == rule_id(pool.texts[7])
    assert [pool.index_of(identifier) for identifier in pool.ids] == list(range(100))
    with pytest.raises(RulePoolError, match=r"'0123' is not in the pool `ramo-100`"):
        pool.index_of("0123")


def test_a_pool_of_ones_own(tmp_path: Path):
    pool = load_pool(written(tmp_path, 'name: two\nrules:\n  - "  First: be kind. "\n  - >\n    Be\n    brief.\n'))
    assert (pool.name, pool.texts) == ("two", ("First: be kind.", "Be brief."))
    assert load_pool(written(tmp_path, "rules: [a]")).name == "pool"


def test_a_fingerprint_is_of_the_texts_in_their_order():
    one = make_pool("one", ["a", "b"], origin="here")
    assert one.fingerprint == make_pool("other", ["a ", "b"], origin="there").fingerprint
    assert one.fingerprint != make_pool("one", ["b", "a"], origin="here").fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [a, b, c, b]", r"pool\.yaml: rules\[1\] and rules\[3\] are the same text"),
        ("rules: [a, ' a ']", r"rules\[0\] and rules\[1\] are the same text"),
        ("rules: []", r"pool\.yaml: the pool holds no rules"),
        ("name: x", r"pool\.yaml: the pool holds no rules"),
        ("", r"pool\.yaml: the pool holds no rules"),
        ("rules: [a, 7]", r"pool\.yaml: rules\[1\] is not a string but a int"),
        ("rules: [true]", r"rules\[0\] is not a string but a bool"),
        ("rules:\n  - Accept: kindness", r"rules\[0\] is not a string but a dict.*in quotes"),
        ("rules: [a, null]", r"rules\[1\] is missing"),
        ("rules: [a, '  ']", r"rules\[1\] is blank"),
        ('rules: ["a\\0b"]', r"rules\[0\] holds a NUL character"),
        ('rules: ["\\ud800"]', r"rules\[0\] holds a lone surrogate"),
        ("rules: all of them", r"`rules` must be a list of texts, but is a str"),
        ("rules: [a]\nweights: [1]", r"pool\.yaml: unknown key `weights`; known here: name, rules"),
        ("name: 7\nrules: [a]", r"`name` = 7 must be a text"),
        ("name: ' '\nrules: [a]", r"`name` = ' ' must be a text"),
    ],
)
def test_what_is_no_pool_is_refused_by_name(tmp_path: Path, text: str, message: str):
    with pytest.raises(RulePoolError, match=message):
        load_pool(written(tmp_path, text))


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_pool(str(tmp_path / "absent.yaml"))


def test_more_critical_rules_than_rules_are_refused():
    pool = make_pool("three", ["a", "b", "c"], origin="here")
    pool.require(3)
    with pytest.raises(RulePoolError, match=r"selection\.r = 4, but the pool `three` has 3 rules"):
        pool.require(4)


def test_strip_prefix():
    assert strip_prefix("Accept the response that best promotes learning.") == "best promotes learning."
    assert all(strip_prefix(text) in text for text in load_pool().texts)
    assert not any(strip_prefix(text).startswith("Accept") for text in load_pool().texts)
    assert strip_prefix("Be kind: accept the response that is.") == "Be kind: accept the response that is."
