"""Drawings of rules and ratings: arrays in, SVG elements out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ramo_ray.evaluation.formatting import percent, whole
from ramo_ray.evaluation.report_data import Floats, Rule, RuleUse, SelectionTerms, TrioRatings
from ramo_ray.evaluation.svg import BLUE, GREY, INK, MUTED, ORANGE, inline_svg
from ramo_ray.evaluation.texts import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP_RULES = 20
MAX_DOTS = 600
LABEL_CHARS = 60


def shared_opening(rules: Sequence[Rule]) -> str:
    """Find the words that all rules of a pool begin with (Table 5: `Accept the response that `), or an empty text."""
    if len(rules) < 2:
        return ""
    # What the first and the last text in sorted order share, all between them share.
    first, last = min(rule.text for rule in rules), max(rule.text for rule in rules)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    common = first[: len(list(alike))]
    return common[: common.rfind(" ") + 1]


def rule_frequency(rules: Sequence[Rule], use: RuleUse) -> Markup:
    """Draw how often each of the most used rules was critical, as bars; rules that never were are left out."""
    order = [int(i) for i in np.argsort(-use.counts, kind="stable")[:TOP_RULES] if use.counts[i] > 0]
    opening = shared_opening(rules)
    labels = [_short(f"{rules[i].index} · {rules[i].text.removeprefix(opening)}") for i in order]
    counts = [int(use.counts[i]) for i in order]
    draw = partial(_draw_rule_frequency, labels=labels, counts=counts, trios=use.trios)
    description = f"Bars: the {len(order)} rules that were critical most often, of {len(rules)}."
    return inline_svg("rule-frequency", description, (440, 31 * len(order) + 10), draw)


def _draw_rule_frequency(figure: Figure, *, labels: Sequence[str], counts: Sequence[int], trios: int) -> None:
    axes = figure.subplots()
    rows = np.arange(len(counts))
    axes.barh(rows + 0.2, counts, height=0.34, color=BLUE, linewidth=0)
    longest = max(counts, default=1)
    for row, (label, count) in enumerate(zip(labels, counts, strict=True)):
        axes.text(0, row - 0.23, label, va="center", parse_math=False)
        share = f"{whole(count)} ({percent(count / trios)})"
        place = (count, row + 0.2)
        axes.annotate(share, place, xytext=(5, 0), textcoords="offset points", va="center", color=MUTED, fontsize=10)
    axes.set(xlim=(0, longest * 1.22), ylim=(len(counts) - 0.4, -0.6), xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)


def selection_terms(terms: SelectionTerms) -> Markup:
    """Draw both terms of equation 12 as they are weighed: critical rules as dots on the density of the others."""
    description = "Discrepancy against weighted relevance, for critical rules and for the others."
    return inline_svg("selection-terms", description, (440, 380), partial(_draw_selection_terms, terms=terms))


def relevance_weight(gamma: float) -> float:
    """What relevance is multiplied with in a drawing: γ, or 1 where γ = 0 gives it no part in the choice."""
    return gamma or 1.0


def _draw_selection_terms(figure: Figure, *, terms: SelectionTerms) -> None:
    axes = figure.subplots()
    weight = relevance_weight(terms.gamma)
    others = _finite_pairs(weight * terms.other_relevance, terms.other_discrepancy)
    critical = _finite_pairs(weight * terms.critical_relevance, terms.critical_discrepancy)
    left, right = _padded(np.concatenate([others[0], critical[0]]))
    _, top = _padded(np.concatenate([others[1], critical[1]]))
    if len(others[0]):
        _density(axes, *others, extent=(left, right, 0, top))
    shown = np.unique(np.linspace(0, len(critical[0]) - 1, min(MAX_DOTS, len(critical[0]))).astype(int))
    axes.scatter(critical[0][shown], critical[1][shown], s=17, color=ORANGE, alpha=0.75, linewidths=0, label="critical")
    axes.scatter([], [], s=60, marker="h", color=GREY, alpha=0.6, linewidths=0, label="others, by density")
    if terms.gamma:
        _equal_sums(axes, (left, right), top)
    label = f"relevance γ·cos(x, u), γ = {terms.gamma:g}" if terms.gamma else "relevance cos(x, u), not weighed: γ = 0"
    axes.set(xlim=(left, right), ylim=(0, top), xlabel=label, ylabel="discrepancy |Δψ|")
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)


def _density(axes: Axes, x: Floats, y: Floats, *, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import ListedColormap, LogNorm, to_rgb

    # One colour whose opacity is the density, so that it works on a light and on a dark page.
    shades = ListedColormap([(*to_rgb(GREY), opacity) for opacity in np.linspace(0.15, 0.9, 32)])
    axes.hexbin(x, y, gridsize=(30, 14), extent=extent, mincnt=1, cmap=shades, norm=LogNorm(), linewidths=0)


def _equal_sums(axes: Axes, across: tuple[float, float], top: float) -> None:
    """Lines on which the sum of both terms is equal: a trio's critical rules are those farthest up and right."""
    from matplotlib.ticker import MaxNLocator

    for total in MaxNLocator(6).tick_values(across[0], across[1] + top):
        label = "equal sum of both" if total == 0 else None
        axes.plot(across, [total - across[0], total - across[1]], color=MUTED, lw=0.7, ls=(0, (4, 4)), label=label)


def trio_ratings(example: TrioRatings, rules: Sequence[Rule]) -> Markup:
    """Draw one trio's scores on all rules, A's and B's, with the critical rules marked by their index."""
    positions = np.array([rule.index for rule in rules])
    description = f"Scores of responses A and B on each of {len(rules)} rules; {len(example.critical)} are critical."
    draw = partial(_draw_trio_ratings, example=example, positions=positions)
    return inline_svg("trio-ratings", description, (1000, 330), draw)


def _draw_trio_ratings(figure: Figure, *, example: TrioRatings, positions: np.ndarray[Any, Any]) -> None:
    axes = figure.subplots()
    axes.vlines(positions, example.scores_a, example.scores_b, color=GREY, lw=1, alpha=0.6)
    critical = np.sort(np.asarray(example.critical, dtype=int))
    places = positions[critical]
    axes.vlines(places, -1.08, 1.08, color=INK, lw=9, alpha=0.1, label="critical")
    axes.vlines(places, example.scores_a[critical], example.scores_b[critical], color=INK, lw=2)
    axes.scatter(positions, example.scores_a, s=20, color=BLUE, label="response A", zorder=3, linewidths=0)
    axes.scatter(
        positions, example.scores_b, s=20, color=ORANGE, marker="D", label="response B", zorder=3, linewidths=0
    )
    level, previous = 0, -math.inf
    for place in places:
        # Neighbours' numbers take turns in height, or they would overlap.
        level = 1 - level if place - previous < 0.025 * max(1, np.ptp(positions)) else 0
        axes.text(place, 1.12 + 0.14 * level, str(place), ha="center", va="bottom", fontsize=10, fontweight="bold")
        previous = place
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="rule (index in the pool)", ylabel="score ψ", ylim=(-1.08, 1.4), yticks=[-1, -0.5, 0, 0.5, 1])
    axes.set_xlim(positions.min() - 1, positions.max() + 1)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.5, columnspacing=1.5)


def _finite_pairs(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    both = np.isfinite(x) & np.isfinite(y)
    return x[both], y[both]


def _padded(values: Floats) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    space = 0.06 * (high - low) or 0.1
    return low - space, high + space


def _short(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= LABEL_CHARS else text[: LABEL_CHARS - 1].rstrip() + "…"
