"""Ways to rate, compared, as one HTML page like the report: no network, no script, and no text of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramo_ray.core.comparison import WayComparison
from ramo_ray.evaluation import comparison_plots
from ramo_ray.evaluation.comparison_text import READING, conclusions, tables
from ramo_ray.evaluation.page import environment, judge_warning
from ramo_ray.evaluation.report_data import Judge


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonData:
    """Everything that one page shows."""

    title: str
    output: str
    """The run's folder."""
    ways: Sequence[WayComparison]
    """The reference first."""
    trios: int
    created: str = ""
    """When the page was made, as it shall be printed; empty leaves it out."""
    facts: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def render(data: ComparisonData) -> str:
    """Render the page as an HTML document. The same data give the same text, which always encodes as UTF-8."""
    return (
        environment()
        .get_template("comparison.html")
        .render(
            data=data,
            warning=judge_warning(data.judge),
            conclusions=conclusions(data.ways, data.trios),
            tables=tables(data.ways),
            reading=READING,
            rule_correlations=comparison_plots.rule_correlations(data.ways[1:]),
            speed=comparison_plots.speed_against_agreement(data.ways),
            config=json.dumps(data.config, indent=2, ensure_ascii=False, sort_keys=True),
        )
    )
