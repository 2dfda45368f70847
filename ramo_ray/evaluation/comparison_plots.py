"""Drawings of ways to rate beside each other: how rules agree, and what speed costs in agreement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from ramo_ray.core.comparison import WayComparison
from ramo_ray.core.resampling import Estimate
from ramo_ray.evaluation.svg import BLUE, GREY, INK, MUTED, ORANGE, inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS, MARKERS = (BLUE, ORANGE, GREY), ("o", "s", "D", "^")
STRIP = 58
"""Height of one way's rules, in pixels."""


def rule_correlations(ways: Sequence[WayComparison]) -> Markup:
    """Draw each way's correlation with the reference, a dot a rule, over the middle half of them and their median."""
    found = [np.array([rule.value for rule in way.rule_correlations if rule is not None]) for way in ways]
    strips = [(way.name, values) for way, values in zip(ways, found, strict=True)]
    description = f"Rank correlation of each rule with the reference, in {len(ways)} ways."
    draw = partial(_draw_rule_correlations, strips=strips)
    return inline_svg("rule-correlations", description, (440, STRIP * len(ways) + 50), draw)


def _draw_rule_correlations(figure: Figure, *, strips: Sequence[tuple[str, np.ndarray]]) -> None:
    axes = figure.subplots()
    lowest = min((float(values.min()) for _, values in strips if len(values)), default=0.0)
    left = max(-1.05, min(-0.05, lowest - 0.05))
    for row, (name, values) in enumerate(strips):
        axes.text(left, row - 0.36, name, va="center", parse_math=False)
        if not len(values):
            axes.text(left, row + 0.1, "no rule has one", va="center", color=MUTED, fontsize=10)
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.barh(row + 0.1, high - low, left=low, height=0.44, color=BLUE, alpha=0.25, linewidth=0)
        axes.vlines(middle, row - 0.12, row + 0.32, color=BLUE, lw=2.5)
        axes.scatter(values, row + 0.1 + _spread(len(values)), s=9, color=INK, alpha=0.45, linewidths=0)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(xlim=(left, 1.03), ylim=(len(strips) - 0.5, -0.6), yticks=[], xlabel="rank correlation, a dot a rule")
    axes.spines["left"].set_visible(False)


def _spread(count: int) -> np.ndarray:
    """Heights that part dots of one value: even steps in an order that neighbours do not share."""
    return 0.36 * ((np.arange(count) * 0.618034) % 1 - 0.5)


def speed_against_agreement(ways: Sequence[WayComparison]) -> Markup:
    """Draw calls a second against the share of labels that stay, with both intervals; the first way is the reference.

    A colour is a layout, a shape is a method.
    """
    description = f"Calls a second against labels that stay as in the reference, for {len(ways)} ways."
    height = 330 + 16 * ((len(ways) + 1) // 2)
    return inline_svg("speed-agreement", description, (440, height), partial(_draw_speed, ways=ways))


def _draw_speed(figure: Figure, *, ways: Sequence[WayComparison]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    axes = figure.subplots()
    layouts, methods = (_in_order([way.name.split("/")[part] for way in ways]) for part in (0, 1))
    for way in ways:
        layout, method = way.name.split("/")
        speed, kept = way.calls_a_second, Estimate(1 - way.flips.value, 1 - way.flips.high, 1 - way.flips.low)
        axes.errorbar(
            speed.value,
            kept.value,
            xerr=_reach(speed),
            yerr=_reach(kept),
            fmt=MARKERS[methods.index(method) % len(MARKERS)],
            color=COLOURS[layouts.index(layout) % len(COLOURS)],
            markersize=7,
            elinewidth=1,
            label=way.name,
        )
    axes.set(xscale="log", xlabel="judge calls a second", ylabel="labels that stay", ylim=(-0.03, 1.05))
    axes.axhline(0.5, color=GREY, lw=0.8, ls=(0, (4, 4)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside upper left", ncols=2, handletextpad=0.4, columnspacing=1.2)


def _reach(found: Estimate) -> list[list[float]]:
    """How far an interval reaches to either side; not at all where a percentile has passed the value itself."""
    return [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]


def _in_order(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
