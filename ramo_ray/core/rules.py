"""The rule pool: the paper's 100 rules, or a pool of the user's own from YAML.

    name: my-pool
    rules:
      - Accept the response that respects privacy.
      - Accept the response that cites its sources.

A rule is known by its index (its place in the pool, and in an adapter's head) and by its id (the hash of its
text, which joins ratings across pools). `name` may be left out; the file's name then stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ramo_ray.config import read_yaml
from ramo_ray.core.records import fingerprint, rule_id
from ramo_ray.core.texts import text_fault
from ramo_ray.errors import RulePoolError

PAPER_POOL = Path(__file__).with_name("rules.yaml")
RULE_PREFIX = "Accept the response that "
KNOWN_KEYS = ("name", "rules")


@dataclass(frozen=True)
class Rule:
    """One safety rule u_i: its place in the pool, the id of its text, and the text."""

    index: int
    id: str
    text: str


@dataclass(frozen=True)
class RulePool:
    """The set U of all rules that may be applied (section 3.1). Built by `load_pool` or `make_pool`."""

    name: str
    rules: tuple[Rule, ...]

    def __len__(self) -> int:
        """R, the number of rules."""
        return len(self.rules)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The rules' texts, by index."""
        return tuple(rule.text for rule in self.rules)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The rules' ids, by index."""
        return tuple(rule.id for rule in self.rules)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {rule.id: rule.index for rule in self.rules}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the texts in their order. The name does not count."""
        return fingerprint(rules=self.ids)

    def index_of(self, rule_id: str) -> int:
        """Index of the rule with this id; `RulePoolError` if the pool does not hold it."""
        try:
            return self._indices[rule_id]
        except KeyError:
            raise RulePoolError(
                f"rule id {rule_id!r} is not in the pool `{self.name}`. Set `rules` to the pool that it comes from."
            ) from None

    def require(self, r: int) -> None:
        """Raise `RulePoolError` unless r rules can be selected from this pool."""
        if r > len(self):
            raise RulePoolError(
                f"selection.r = {r}, but the pool `{self.name}` has {len(self)} rules. Lower selection.r or add rules."
            )


def strip_prefix(text: str) -> str:
    """Drop a leading "Accept the response that " (`judge.rule_prefix: strip`); another text stays as it is."""
    return text.removeprefix(RULE_PREFIX)


def make_pool(name: str, texts: Sequence[object], *, origin: str) -> RulePool:
    """Build a pool from texts, whose surrounding white space is dropped.

    `origin` is named in the `RulePoolError` for an empty pool, an entry that is no usable text, or a repeated text.
    """
    if not texts:
        raise RulePoolError(f"{origin}: the pool holds no rules. List at least one text under `rules`.")
    places: dict[str, int] = {}
    for index, entry in enumerate(texts):
        text = _checked(entry, f"{origin}: rules[{index}]")
        if text in places:
            raise RulePoolError(f"{origin}: rules[{places[text]}] and rules[{index}] are the same text. Remove one.")
        places[text] = index
    return RulePool(name, tuple(Rule(index, rule_id(text), text) for text, index in places.items()))


def _checked(entry: object, place: str) -> str:
    fault = text_fault(entry)
    if fault is not None:
        raise RulePoolError(f"{place} {fault}. Give each rule as a text, in quotes where YAML reads it otherwise.")
    text = str(entry).strip()
    if not text:
        raise RulePoolError(f"{place} is blank. Write the rule, or remove the entry.")
    return text


def load_pool(path: str = "") -> RulePool:
    """Read a pool from a YAML file; an empty path means the paper's pool (Table 5).

    `ConfigError` if the file cannot be read, `RulePoolError` if it does not describe a pool.
    """
    file = Path(path) if path else PAPER_POOL
    values = read_yaml(file)
    unknown = [key for key in values if key not in KNOWN_KEYS]
    if unknown:
        raise RulePoolError(f"{file}: unknown key `{unknown[0]}`; known here: {', '.join(KNOWN_KEYS)}.")
    texts = values.get("rules") or []
    if not isinstance(texts, list):
        raise RulePoolError(f"{file}: `rules` must be a list of texts, but is a {type(texts).__name__}.")
    name = values.get("name", file.stem)
    if not isinstance(name, str) or not name.strip():
        raise RulePoolError(f"{file}: `name` = {name!r} must be a text that is not blank, or be left out.")
    return make_pool(name.strip(), texts, origin=str(file))
