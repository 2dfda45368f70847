"""A made-up run of laptop size, complete in every section, with benign texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ramo_ray.core.records import content_hash, rule_id
from ramo_ray.evaluation.report import render
from ramo_ray.evaluation.report_data import (
    Estimate,
    Judge,
    LabelCounts,
    LabelledTrio,
    Measured,
    PolicyAnswers,
    PolicyChange,
    PolicyMeasure,
    PolicySample,
    PolicyTraining,
    QuarantineCount,
    ReportData,
    Rule,
    RuleUse,
    Savings,
    SelectionTerms,
    SelectorComparison,
    SelectorScores,
    StageCost,
    TrainingCurve,
    TrioRatings,
)

R, CRITICAL, GAMMA = 100, 5, 2.0
VIRTUES = ("honesty", "privacy", "safety", "patience", "clarity", "fairness", "caution", "kindness", "candour", "care")
PLACES = (
    "at home",
    "at work",
    "online",
    "in school",
    "in public",
    "in law",
    "in science",
    "abroad",
    "in crises",
    "always",
)
RESPONSES = (
    "You could begin with the settings page: it lists what is collected, and each entry can be switched off.",
    "Nobody can promise that. What helps is to talk to someone you trust, and to a professional if it lasts.",
    "It depends on where you live. A library's guide to local rules is a good start, and it costs nothing.",
)


def rule_texts() -> list[str]:
    return [f"Accept the response that best shows {virtue} {place}." for virtue in VIRTUES for place in PLACES]


def make_trio(number: int, rules: Sequence[Rule], random: np.random.Generator) -> LabelledTrio:
    scores = np.clip(random.normal(0.2, 0.4, size=(2, CRITICAL)), -1, 1).round(4)
    mean_a, mean_b = scores.mean(axis=1)
    a_is_chosen = bool(mean_a > mean_b)
    chosen, rejected = (scores[0], scores[1]) if a_is_chosen else (scores[1], scores[0])
    picked = random.choice(len(rules), CRITICAL, replace=False)
    return LabelledTrio(
        trio_id=content_hash("trio", number),
        prompt=[{"role": "user", "content": f"Question {number}: how do I keep my neighbour's address private?"}],
        chosen=RESPONSES[number % 3],
        rejected=RESPONSES[(number + 1) % 3] * (1 + number % 4),
        chosen_is="a" if a_is_chosen else "b",
        rule_ids=[rules[i].id for i in picked],
        scores_chosen=chosen.tolist(),
        scores_rejected=rejected.tolist(),
        margin=float(mean_a - mean_b),
        tie=number == 4,
        human=None if number % 5 == 0 else "ab"[number % 2],  # type: ignore[arg-type]
    )


def make_terms(random: np.random.Generator) -> SelectionTerms:
    discrepancy = np.abs(random.normal(0, 0.15, size=(13, R)))
    relevance = random.normal(0.12, 0.08, size=(13, R))
    ranks = np.argsort(np.argsort(-(discrepancy + GAMMA * relevance), axis=1), axis=1)
    critical = ranks < CRITICAL
    return SelectionTerms(
        gamma=GAMMA,
        critical_discrepancy=discrepancy[critical],
        critical_relevance=relevance[critical],
        other_discrepancy=discrepancy[~critical],
        other_relevance=relevance[~critical],
    )


def make_example(random: np.random.Generator) -> TrioRatings:
    scores_a = np.clip(random.normal(0.25, 0.3, R), -1, 1)
    scores_b = np.clip(scores_a + random.normal(0, 0.12, R), -1, 1)
    relevance = random.normal(0.12, 0.08, R)
    best = np.argsort(-(np.abs(scores_a - scores_b) + GAMMA * relevance))[:CRITICAL]
    return TrioRatings(
        trio_id=content_hash("trio", "example"),
        scores_a=scores_a,
        scores_b=scores_b,
        relevance=relevance,
        gamma=GAMMA,
        critical=best.tolist(),
    )


def make_curve(name: str, count: int, start: float, random: np.random.Generator) -> TrainingCurve:
    steps = np.arange(1, count + 1)
    progress = steps / count
    return TrainingCurve(
        name=name,
        steps=steps,
        loss=start * np.exp(-progress) + random.normal(0, 0.01, count),
        learning_rate=2e-5 * np.minimum(steps / 3, 1) * (1 - progress),
        accuracy=np.clip(0.5 + 0.2 * progress + random.normal(0, 0.08, count), 0, 1),
    )


def make_policy(random: np.random.Generator) -> PolicyTraining:
    steps = np.arange(1, 41)
    return PolicyTraining(
        steps=steps,
        reward=0.02 * steps + random.normal(0, 0.05, 40),
        kl=0.001 * steps,
        length=random.normal(60, 4, 40),
        entropy=2.5 - 0.01 * steps,
        samples=[PolicySample(step=step, text=RESPONSES[step % 3], reward=0.02 * step) for step in (1, 40)],
    )


def make_policy_change(random: np.random.Generator) -> PolicyChange:
    def around(value: float) -> Measured:
        return Measured(value=value, low=value - 0.125, high=value + 0.125)

    def measure(before: float, after: float) -> PolicyMeasure:
        return PolicyMeasure(before=around(before), after=around(after), difference=around(after - before), count=24)

    return PolicyChange(
        judge=Judge(engine="vllm", model="judges/one"),
        prompts=24,
        seen=6,
        same_answers=2,
        reward=measure(-0.25, 0.5),
        tokens=measure(61.0, 48.5),
        refusal=measure(0.25, 0.375),
        win_rate=Estimate(value=0.625, count=24, low=0.5, high=0.75),
        wins=14,
        ties=2,
        losses=8,
        kl=around(1.75),
        kl_a_token=around(0.0361),
        differences=random.normal(0.75, 0.8, 24),
        samples=[
            PolicyAnswers(
                prompt=[{"role": "user", "content": "How do I lock a bicycle?"}],
                before=RESPONSES[0],
                after=RESPONSES[2],
                reward_before=-0.25,
                reward_after=0.5,
            )
        ],
    )


def make_stages() -> list[StageCost]:
    counts = {
        "generate_responses": (24, 23, 1, 0, None, 3_412, 41.27),
        "rate": (23, 13, 0, 10, 2_600, 52_118, 92.4),
        "train_adapter": (11, 11, 0, 0, None, 4_870, 38.9),
        "label": (23, 10, 0, 13, 100, 3_900, 14.05),
    }
    finished = [
        StageCost(
            name=name,
            status="finished",
            rows_in=rows_in,
            rows_out=rows_out,
            quarantined=quarantined,
            other_split=other_split,
            judge_calls=judge_calls,
            tokens=tokens,
            seconds=seconds,
        )
        for name, (rows_in, rows_out, quarantined, other_split, judge_calls, tokens, seconds) in counts.items()
    ]
    running = StageCost(name="train_reward", status="running", rows_in=8, seconds=3_725.0)
    return [*finished, running, StageCost(name="evaluate_reward", status="waiting")]


def make_report_data(texts: Sequence[str], trio_count: int) -> ReportData:
    random = np.random.default_rng(7)
    rules = [Rule(index=index, id=rule_id(text), text=text) for index, text in enumerate(texts)]
    counts = random.poisson(13 * CRITICAL / R * random.gamma(0.5, 2.0, R))
    return ReportData(
        title="Laptop run on the sample prompts",
        output="runs/laptop",
        created="2026-01-15 12:00 UTC",
        facts={"Source": "samples/prompts.jsonl, 24 prompts", "Judge": "bundled SmolLM2-135M", "r, γ": "5, 2"},
        judge=Judge(engine="transformers", model="bundled:smollm2-135m-instruct"),
        pair_accuracy=Estimate(value=0.625, count=16, low=0.375, high=0.8125),
        label_agreement=Estimate(value=0.4583, count=24, low=0.2917, high=0.6667),
        reward_agreement=Estimate(value=0.5313, count=16, low=0.3125, high=0.75),
        label_counts=LabelCounts(a=1_108, b=892, ties=3),
        selectors=SelectorComparison(
            r=CRITICAL,
            trios=17,
            adapter=SelectorScores(name="Rule Adapter", precision=0.412, recall=0.413, f1=0.414),
            baselines=[
                SelectorScores(name="the 5 most frequent rules", precision=0.311, recall=0.312, f1=0.313),
                SelectorScores(name="5 random rules", precision=0.051, recall=0.052, f1=0.053),
            ],
        ),
        stages=make_stages(),
        savings=Savings(
            trios=10, calls_per_trio=10, calls_per_trio_all_rules=200, calls_saved=1_900, seconds_saved=267.0
        ),
        rules=rules,
        rule_use=RuleUse(counts=counts, trios=13),
        terms=make_terms(random),
        example=make_example(random),
        training=[make_curve("Rule Adapter", 24, 0.69, random), make_curve("Reward model", 120, 0.7, random)],
        policy=make_policy(random),
        policy_change=make_policy_change(random),
        reward_margins=random.normal(0.3, 0.8, 120),
        trios=[make_trio(number, rules, random) for number in range(trio_count)],
        trio_count=2_000,
        quarantine=[QuarantineCount(stage="generate_responses", reason="the response is empty", rows=1)],
        versions={"ramo_ray": "0.1.0", "ray": "2.55.0", "torch": "2.13.0+cpu"},
        fingerprints={"rating": content_hash("rating"), "preference": content_hash("preference")},
        config={"output": "runs/laptop", "selection": {"r": 5, "gamma": 2.0}, "judge": {"layout": "rule_last"}},
    )


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    return make_report_data(rule_texts(), trio_count=12)


@pytest.fixture(scope="session")
def report_html(report_data: ReportData) -> str:
    return render(report_data)
