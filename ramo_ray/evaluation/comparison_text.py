"""Ways to rate beside each other, in cells and sentences: what the terminal and the page both show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ramo_ray.core.comparison import WayComparison
from ramo_ray.core.resampling import Estimate
from ramo_ray.evaluation.formatting import NOTHING, decimal, percent, whole

Format = Callable[[float], str]


class Cell(NamedTuple):
    """A value as it is read, and its 95% interval where it has one."""

    value: str
    interval: str = ""


class Table(NamedTuple):
    """A heading a column, and a row a way: its name, then a cell a column."""

    title: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def tables(ways: Sequence[WayComparison]) -> list[Table]:
    """How the ways agree with the first, and what each costs and answers."""
    reference, *others = ways
    agreement = (
        "rank correlation, median rule",
        "rules without one",
        "critical rules shared",
        "shared by chance",
        "labels that flip",
    )
    cost = ("calls/s", "× reference", "label mass", "ties", "agrees with humans")
    return [
        Table(f"Agreement with {reference.name}", agreement, [(way.name, _agreement(way)) for way in others]),
        Table("Cost and answers", cost, [(way.name, _cost(way, way is reference)) for way in ways]),
    ]


def _agreement(way: WayComparison) -> list[Cell]:
    return [
        cell(way.correlation, _correlation),
        Cell(whole(sum(found is None for found in way.rule_correlations))),
        cell(way.overlap, percent),
        Cell(percent(way.overlap_by_chance)),
        cell(way.flips, percent),
    ]


def _cost(way: WayComparison, is_reference: bool) -> list[Cell]:
    return [
        cell(way.calls_a_second, significant),
        cell(None if is_reference else way.speed, significant),
        cell(way.label_mass, decimal),
        cell(way.ties, percent),
        cell(way.human_agreement, percent),
    ]


def cell(estimate: Estimate | None, form: Format) -> Cell:
    """An estimate in a form; a dash where it is not defined."""
    if estimate is None:
        return Cell(NOTHING)
    return Cell(form(estimate.value), f"{form(estimate.low)} to {form(estimate.high)}")


def significant(value: float) -> str:
    """Write a positive number to three significant digits or to its whole part."""
    return whole(value) if value >= 99.95 else decimal(value, 1 if value >= 9.995 else 2)


def _correlation(value: float) -> str:
    return decimal(value, 2)


def conclusions(ways: Sequence[WayComparison], trios: int) -> list[str]:
    """A sentence a way: what it costs and what it changes, for the reader to weigh."""
    reference, *others = ways
    return [
        f"{way.name}: {_factor(way.speed)} the calls/s of {reference.name}; {way.flipped} of {trios} labels flip, "
        f"{_with_interval(way.flips)}; {percent(way.overlap.value)} of the critical rules are shared "
        f"({percent(way.overlap_by_chance)} by chance)."
        for way in others
    ]


def _factor(speed: Estimate) -> str:
    return f"{significant(speed.value)}× [{significant(speed.low)}, {significant(speed.high)}]"


def _with_interval(share: Estimate) -> str:
    return f"{percent(share.value)} [{percent(share.low)}, {percent(share.high)}]"


READING = (
    "A label that flips is a preference that goes the other way; two ways that had nothing to do with each other would "
    "flip about half. The first way is what others are held against, not the truth: agreement with humans stands "
    "beside it where the source has their labels.",
    "“By chance” is what remains when a way’s ratings are shuffled over the rules: relevance, which both ways share, "
    "lifts it above r / R. A rule without a correlation has one score for all conversations in one of the two ways. "
    "With two labels or a number, scores lie in [0, 1] instead of [−1, 1], so the same γ weighs relevance twice as "
    "much.",
    "Intervals are 95% bootstrap percentiles over prompts; where all prompts agree, the exact bound for so many. "
    "Calls a second are of one engine that answers all ways in turn, loading left out.",
)
"""What the numbers mean, for who decides by them."""
