"""What a report shows: frozen records that a caller fills from a run's tables, and `report.render` turns into a page.

Every section is optional. What is left at its default is shown as not there yet, so that a run can be reported on
while it is under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ramo_ray.core.records import Message

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Side = Literal["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The judge of a run, as it was configured (`judge.engine`, `judge.model`)."""

    engine: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share in [0, 1] of `count` cases, with the bounds of its 95% bootstrap interval where there is one."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How many labelled trios chose A and B. `ties` are among those of B (equation 4)."""

    a: int
    b: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class SelectorScores:
    """How well one way to pick r rules finds the critical ones of held-out trios; all in [0, 1]."""

    name: str
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class SelectorComparison:
    """The Rule Adapter beside its baselines, at `r` rules, over `trios` held-out trios."""

    r: int
    trios: int
    adapter: SelectorScores
    baselines: Sequence[SelectorScores]


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage's counts. None: the stage does not count it (or has not come to it)."""

    name: str
    status: str
    rows_in: int | None = None
    rows_out: int | None = None
    quarantined: int | None = None
    other_split: int | None = None
    """Rows that this stage leaves to another split."""
    truncated: int | None = None
    """What it rated with a response cut to the judge's context: conversations, or labelled trios."""
    judge_calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What labelling with the adapter's r rules cost, against rating all R rules."""

    trios: int
    calls_per_trio: float
    calls_per_trio_all_rules: float
    calls_saved: int
    seconds_saved: float | None = None
    """Estimated from the measured seconds of one judge call."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the pool."""

    index: int
    id: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RuleUse:
    """How often each rule was critical. `counts[i]` belongs to `ReportData.rules[i]`; `trios` is their denominator."""

    counts: Integers
    trios: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectionTerms:
    """Both terms of equation 12 over (trio, rule) cells: |Δψ| and cos(x, u), unweighted, for critical and other rules.

    The two arrays of a group have equal length. For a large run pass a sample.
    """

    gamma: float
    critical_discrepancy: Floats
    critical_relevance: Floats
    other_discrepancy: Floats
    other_relevance: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class TrioRatings:
    """One trio rated on all R rules: arrays [R] in the pool's order; NaN where the judge gave no answer.

    `critical` holds positions in the pool, best first.
    """

    trio_id: str
    scores_a: Floats
    scores_b: Floats
    relevance: Floats
    gamma: float
    critical: Sequence[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCurve:
    """What one training reported, arrays [steps]."""

    name: str
    steps: Integers
    loss: Floats
    learning_rate: Floats | None = None
    accuracy: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class PolicySample:
    """The first response of one step of PPO, with its prompt, as the policy read and wrote them."""

    step: int
    text: str
    reward: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyTraining:
    """What PPO reported, arrays [steps]: means over a step's responses, of which `length` counts tokens."""

    steps: Integers
    reward: Floats
    kl: Floats
    length: Floats
    entropy: Floats
    samples: Sequence[PolicySample] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A mean and the bounds of its 95% bootstrap interval, in units of its own."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PolicyMeasure:
    """A figure of a policy's answers before and after, over `count` prompts that have both."""

    before: Measured
    after: Measured
    difference: Measured
    count: int


@dataclass(frozen=True, kw_only=True)
class PolicyAnswers:
    """What a policy answered before and after, and their rewards where the reward model could read them."""

    prompt: Sequence[Message]
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyChange:
    """How a policy's answers changed. None: too few prompts have that figure."""

    judge: Judge
    """Who decided on wins, which need not be the judge of the rest."""
    prompts: int
    seen: int | None
    """Of the prompts, those that the policy was aligned on; None where that is not known."""
    same_answers: int
    reward: PolicyMeasure | None
    tokens: PolicyMeasure | None
    refusal: PolicyMeasure | None
    """Shares of answers that decline."""
    win_rate: Estimate | None
    """By the judge; a tie counts half."""
    wins: int
    ties: int
    losses: int
    kl: Measured | None
    """KL(after ‖ before) along an answer, in nats."""
    kl_a_token: Measured | None
    differences: Floats
    """Reward after minus reward before, over the prompts that have both."""
    samples: Sequence[PolicyAnswers] = ()


@dataclass(frozen=True, kw_only=True)
class LabelledTrio:
    """A row of `preferences` with the human's side where the source has one. `margin` is φ(A) − φ(B)."""

    trio_id: str
    prompt: Sequence[Message]
    chosen: str
    rejected: str
    chosen_is: Side
    rule_ids: Sequence[str]
    scores_chosen: Sequence[float]
    scores_rejected: Sequence[float]
    margin: float
    tie: bool
    truncated: bool = False
    """Whether the judge read one of the responses only in part."""
    human: Side | None = None


@dataclass(frozen=True, kw_only=True)
class QuarantineCount:
    """Rows that one stage put aside for one reason."""

    stage: str
    reason: str
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything that one report shows."""

    title: str
    output: str
    """The run's folder."""
    created: str = ""
    """When the report was made, as it shall be printed; empty leaves it out."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the run was, as name and value: source, models, r, γ …"""
    judge: Judge | None = None

    pair_accuracy: Estimate | None = None
    label_agreement: Estimate | None = None
    reward_agreement: Estimate | None = None
    label_counts: LabelCounts | None = None
    selectors: SelectorComparison | None = None

    stages: Sequence[StageCost] = ()
    savings: Savings | None = None

    rules: Sequence[Rule] = ()
    rule_use: RuleUse | None = None
    terms: SelectionTerms | None = None
    example: TrioRatings | None = None
    training: Sequence[TrainingCurve] = ()
    policy: PolicyTraining | None = None
    policy_change: PolicyChange | None = None
    reward_margins: Floats | None = None
    """Reward of the chosen minus reward of the rejected response, over the test pairs."""

    trios: Sequence[LabelledTrio] = ()
    """Trios to list; the page shows the first `report.MAX_TRIOS`."""
    trio_count: int | None = None
    """How many were labelled in all, where `trios` is a part of them."""
    quarantine: Sequence[QuarantineCount] | None = None
    """None: not known yet. Empty: nothing was put aside."""

    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, as JSON has it."""
