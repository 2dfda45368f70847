"""Labelled trios as rows of the report: each label with the rules and scores that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ramo_ray.evaluation.report_data import LabelledTrio, Rule, TrioRatings
from ramo_ray.evaluation.texts import Excerpt, excerpt, fair_limit, page_bytes

TEXT_BUDGET = 1_000_000
"""Bytes that the texts of all listed trios may take together; the longest are cut until they fit."""
RULE_LIMIT = 400
"""Bytes of one rule's text."""


@dataclass(frozen=True)
class Turn:
    """A message of a prompt, or a response with its name."""

    heading: str
    content: Excerpt


@dataclass(frozen=True)
class RuleScores:
    """One rule's part in a label. `rule` is None where the pool has no such id."""

    rule_id: str
    rule: Rule | None
    text: str
    score_a: float
    score_b: float


@dataclass(frozen=True)
class TrioRow:
    """One labelled trio. `mean_a` and `mean_b` are φ of the responses (equation 4); None without rules."""

    trio: LabelledTrio
    turns: Sequence[Turn]
    scores: Sequence[RuleScores]
    mean_a: float | None
    mean_b: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether the label is the human's; None where there is none."""
        return None if self.trio.human is None else self.trio.human == self.trio.chosen_is


@dataclass(frozen=True)
class SelectedRule:
    """A critical rule of the example trio with both terms of equation 12."""

    rule: Rule
    text: str
    score_a: float
    score_b: float
    discrepancy: float
    weighted_relevance: float


def trio_rows(trios: Sequence[LabelledTrio], rules: Sequence[Rule]) -> list[TrioRow]:
    """Build the rows, cutting the longest texts so that all of them stay within `TEXT_BUDGET`."""
    by_id = {rule.id: rule for rule in rules}
    limit = fair_limit([page_bytes(text) for trio in trios for _, text in _texts(trio)], TEXT_BUDGET)
    return [_row(trio, by_id, limit) for trio in trios]


def _texts(trio: LabelledTrio) -> list[tuple[str, str]]:
    a_is_chosen = trio.chosen_is == "a"
    response_a, response_b = (trio.chosen, trio.rejected) if a_is_chosen else (trio.rejected, trio.chosen)
    prompt = [(f"Prompt: {message['role']}", message["content"]) for message in trio.prompt]
    fate_a, fate_b = ("chosen", "rejected") if a_is_chosen else ("rejected", "chosen")
    return [*prompt, (f"Response A ({fate_a})", response_a), (f"Response B ({fate_b})", response_b)]


def _row(trio: LabelledTrio, by_id: Mapping[str, Rule], limit: int) -> TrioRow:
    chosen, rejected = trio.scores_chosen, trio.scores_rejected
    scores_a, scores_b = (chosen, rejected) if trio.chosen_is == "a" else (rejected, chosen)
    scores = [
        RuleScores(rule_id, by_id.get(rule_id), _rule_text(by_id.get(rule_id)), a, b)
        for rule_id, a, b in zip(trio.rule_ids, scores_a, scores_b, strict=True)
    ]
    turns = [Turn(heading, excerpt(text, limit)) for heading, text in _texts(trio)]
    return TrioRow(trio, turns, scores, _mean(scores_a), _mean(scores_b))


def selected_rules(example: TrioRatings, rules: Sequence[Rule]) -> list[SelectedRule]:
    """List the example's critical rules, best first, with what equation 12 weighed."""
    return [
        SelectedRule(
            rule=rules[position],
            text=_rule_text(rules[position]),
            score_a=float(example.scores_a[position]),
            score_b=float(example.scores_b[position]),
            discrepancy=abs(float(example.scores_a[position]) - float(example.scores_b[position])),
            weighted_relevance=example.gamma * float(example.relevance[position]),
        )
        for position in example.critical
    ]


def _rule_text(rule: Rule | None) -> str:
    if rule is None:
        return ""
    text, left_out = excerpt(rule.text, RULE_LIMIT)
    return text + "…" if left_out else text


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if len(scores) else None
