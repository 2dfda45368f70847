"""A run as one HTML page that needs nothing else: no network, no script, drawings and style inside.

Texts of prompts and responses stand in closed folds, since they may be harmful to read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ramo_ray.evaluation import rule_plots, training_plots
from ramo_ray.evaluation.page import environment, judge_warning
from ramo_ray.evaluation.report_data import (
    Estimate,
    Floats,
    PolicyAnswers,
    PolicyChange,
    PolicyMeasure,
    ReportData,
    StageCost,
)
from ramo_ray.evaluation.texts import Excerpt, excerpt
from ramo_ray.evaluation.trio_rows import selected_rules, trio_rows

MAX_TRIOS = 200
SAMPLE_BYTES = 8_000
"""Of the page, that one response of the policy takes at most, with its prompt."""


class Drawings(NamedTuple):
    """The page's drawings; None where the data for one are not there."""

    rule_frequency: Markup | None
    selection_terms: Markup | None
    trio_ratings: Markup | None
    training: Sequence[tuple[str, Markup]]
    reward_margins: Markup | None
    policy: Markup | None
    policy_change: Markup | None


def render(data: ReportData) -> str:
    """Render the report as an HTML document. The same data give the same text, which always encodes as UTF-8."""
    used = int(np.count_nonzero(data.rule_use.counts)) if data.rule_use else 0
    templates = environment()
    templates.filters["total"] = _total
    return templates.get_template("report.html").render(
        data=data,
        warning=judge_warning(data.judge),
        estimates=_estimates(data),
        uneven_stages=[stage for stage in data.stages if _is_uneven(stage)],
        drawings=_drawings(data),
        terms=_term_rows(data),
        bars=min(rule_plots.TOP_RULES, used),
        never_critical=len(data.rules) - used,
        opening=rule_plots.shared_opening(data.rules).strip(),
        selected=selected_rules(data.example, data.rules) if data.example and data.rules else [],
        trios=trio_rows(data.trios[:MAX_TRIOS], data.rules),
        trio_count=len(data.trios) if data.trio_count is None else data.trio_count,
        samples=[(sample, excerpt(sample.text, SAMPLE_BYTES)) for sample in data.policy.samples] if data.policy else [],
        policy_rows=_policy_rows(data.policy_change) if data.policy_change else [],
        policy_warning=judge_warning(data.policy_change.judge) if data.policy_change else "",
        answers=_answers(data.policy_change) if data.policy_change else [],
        config=json.dumps(data.config, indent=2, ensure_ascii=False, sort_keys=True),
    )


def _estimates(data: ReportData) -> list[tuple[str, str, Estimate]]:
    rows = [
        (
            "Reward model, pair accuracy",
            "test pairs on which the chosen response has the higher reward",
            data.pair_accuracy,
        ),
        ("Labels, agreement with humans", "labelled trios on which human and label choose alike", data.label_agreement),
        (
            "Reward model, agreement with humans",
            "pairs on which the human’s choice has the higher reward",
            data.reward_agreement,
        ),
    ]
    return [(name, meaning, estimate) for name, meaning, estimate in rows if estimate is not None]


def _policy_rows(change: PolicyChange) -> list[tuple[str, str, PolicyMeasure, str]]:
    """Name, meaning, figures and the filter that prints them, of what was measured before and after."""
    rows = [
        ("Reward", "mean reward of an answer", change.reward, "decimal"),
        ("Length", "tokens of an answer", change.tokens, "decimal"),
        ("Refusals", "answers that begin by declining, told by phrases", change.refusal, "percent"),
    ]
    return [(name, meaning, found, shown) for name, meaning, found, shown in rows if found is not None]


def _answers(change: PolicyChange) -> list[tuple[PolicyAnswers, Excerpt, Excerpt, Excerpt]]:
    """Samples with their texts, each cut where it is long."""
    limit = SAMPLE_BYTES // 3
    return [
        (
            sample,
            excerpt("\n\n".join(message["content"] for message in sample.prompt), limit),
            excerpt(sample.before, limit),
            excerpt(sample.after, limit),
        )
        for sample in change.samples
    ]


def _is_uneven(stage: StageCost) -> bool:
    """Whether a finished stage's counts break: rows in = rows out + quarantined + left to another split."""
    if stage.status != "finished" or stage.rows_in is None or stage.rows_out is None:
        return False
    return stage.rows_in != stage.rows_out + (stage.quarantined or 0) + (stage.other_split or 0)


def _total(stages: Sequence[StageCost], name: str) -> float | None:
    """Sum one count over the stages; None where no stage has counted it."""
    counted = [value for stage in stages if (value := getattr(stage, name)) is not None]
    return sum(counted) if counted else None


def _drawings(data: ReportData) -> Drawings:
    use, rules, margins, changed = data.rule_use, data.rules, data.reward_margins, data.policy_change
    return Drawings(
        rule_frequency=rule_plots.rule_frequency(rules, use) if use and rules and use.counts.any() else None,
        selection_terms=rule_plots.selection_terms(data.terms) if data.terms else None,
        trio_ratings=rule_plots.trio_ratings(data.example, rules) if data.example and rules else None,
        training=[
            (curve.name, training_plots.training_curve(curve, number))
            for number, curve in enumerate(data.training)
            if len(curve.steps)
        ],
        reward_margins=None
        if margins is None or not len(margins)
        else training_plots.reward_differences(margins, training_plots.MARGINS),
        policy=training_plots.policy_training(data.policy) if data.policy and len(data.policy.steps) else None,
        policy_change=training_plots.reward_differences(changed.differences, training_plots.CHANGES)
        if changed and len(changed.differences)
        else None,
    )


def _term_rows(data: ReportData) -> list[tuple[str, int, list[float | None]]]:
    """Name, cells, and median and 90th percentile of |Δψ| and of the weighted relevance, of both groups of rules."""
    terms = data.terms
    if terms is None:
        return []
    weight = rule_plots.relevance_weight(terms.gamma)
    groups = [
        ("critical", terms.critical_discrepancy, terms.critical_relevance),
        ("others", terms.other_discrepancy, terms.other_relevance),
    ]
    return [
        (name, len(discrepancy), [*_quantiles(discrepancy), *_quantiles(weight * relevance)])
        for name, discrepancy, relevance in groups
    ]


def _quantiles(values: Floats) -> list[float | None]:
    finite = values[np.isfinite(values)]
    return [float(q) for q in np.quantile(finite, [0.5, 0.9])] if len(finite) else [None, None]
