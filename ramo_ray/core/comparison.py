"""How far several ways to rate agree with the first of them, and what each costs (Appendix D has three methods).

A way is a layout of the judge's prompt and a scoring method. All have rated the same conversations on the same rules.
The first is the reference, which others are held against; that does not make it right, so agreement with humans stands
beside it where the source has their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramo_ray.core.preference import aggregate, prefer
from ramo_ray.core.rank_correlation import rank_correlations
from ramo_ray.core.resampling import Estimate, estimate, prompt_weights, ratios, share, sum_by_prompt
from ramo_ray.core.selection import FloatArray, IndexArray, select
from ramo_ray.settings import SelectionSettings

SHUFFLES = 100
"""Times that each trio's ratings are shuffled over the rules to see what chance would give."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RatedWays:
    """What W ways made of C conversations of P prompts, in T trios, on R rules; the first way is the reference."""

    names: Sequence[str]
    scores: FloatArray
    """[W, C, R]"""
    label_mass: FloatArray
    """[W, C, R]"""
    calls: FloatArray
    """[W, P], judge calls by prompt."""
    seconds: FloatArray
    """[W, P], what these took."""
    prompt_of: NDArray[np.int64]
    """[C], the prompt of each conversation."""
    sides: NDArray[np.int64]
    """[T, 2], the conversations with responses A and B."""
    relevance: FloatArray
    """[T, R], sim(x, u_i) of equation 12."""
    human: Sequence[int | None]
    """[T], the label that the source has: 0 = A, 1 = B."""


class Verdicts(NamedTuple):
    """What one way makes of the trios: critical rules [T] of its own, label [T] (0 = A, 1 = B), whether a tie [T]."""

    critical: list[IndexArray]
    labels: NDArray[np.int64]
    ties: NDArray[np.bool_]


class WayComparison(NamedTuple):
    """One way beside the reference. All intervals are bootstraps over prompts.

    Attributes:
        rule_correlations: Spearman's correlation of the scores with the reference's over conversations, rule by rule;
            None where one of the two is constant, so that it is not defined.
        correlation: median over the rules that have one; None if none has.
        overlap: share of critical rules that the reference selects too, mean over trios.
        overlap_by_chance: the same after shuffling the ratings over rules, relevance left where it is.
        flips: share of trios whose label (equation 4) is not the reference's; `flipped` is their number.
        ties: share of trios whose margin is within the tolerance, which go to B.
        human_agreement: share of trios that a human labelled too whose label is the human's; None without any.
        label_mass: share of the vocabulary's probability that the method's answers hold, mean over all cells.
        calls_a_second: judge calls a second of one engine, loading left out.
        speed: calls a second as a multiple of the reference's.
    """

    name: str
    rule_correlations: list[Estimate | None]
    correlation: Estimate | None
    overlap: Estimate
    overlap_by_chance: float
    flips: Estimate
    flipped: int
    ties: Estimate
    human_agreement: Estimate | None
    label_mass: Estimate
    calls_a_second: Estimate
    speed: Estimate


def compare(rated: RatedWays, *, selection: SelectionSettings, samples: int, seed: int) -> list[WayComparison]:
    """Compare each way, the reference included, with the reference.

    Args:
        rated: what the ways made of the same conversations.
        selection: r, γ (or the threshold) that each way's critical rules are selected with, and the tie tolerance.
        samples: bootstrap resamples of the prompts.
        seed: of the resamples and of the shuffles.

    Raises:
        ValueError: fewer than two prompts, or a score that is not finite.
    """
    weights = prompt_weights(rated.calls.shape[1], samples, seed)
    verdicts = [judge_trios(scores, rated, selection) for scores in rated.scores]
    correlations = rank_correlations(rated.scores, weights[:, rated.prompt_of])
    return [
        _compare(rated, place, by_rule, verdicts, weights, selection, seed)
        for place, by_rule in enumerate(correlations)
    ]


def _compare(
    rated: RatedWays,
    place: int,
    by_rule: FloatArray,
    verdicts: Sequence[Verdicts],
    weights: FloatArray,
    selection: SelectionSettings,
    seed: int,
) -> WayComparison:
    own, reference = verdicts[place], verdicts[0]
    flipped = own.labels != reference.labels
    speeds = [ratios(rated.calls[way], rated.seconds[way], weights) for way in (place, 0)]
    return WayComparison(
        name=rated.names[place],
        rule_correlations=[estimate(column) for column in by_rule.T],
        correlation=estimate(_median_of_rules(by_rule)),
        overlap=_over_trios(overlaps(own.critical, reference.critical), rated, weights),
        overlap_by_chance=_overlap_by_chance(rated, place, reference.critical, selection, seed),
        flips=_over_trios(flipped, rated, weights),
        flipped=int(flipped.sum()),
        ties=_over_trios(own.ties, rated, weights),
        human_agreement=_human_agreement(own.labels, rated, weights),
        label_mass=_over_cells(rated.label_mass[place], rated, weights),
        calls_a_second=_certain(estimate(speeds[0])),
        speed=_certain(estimate(speeds[0] / speeds[1])),
    )


def judge_trios(scores: FloatArray, rated: RatedWays, selection: SelectionSettings) -> Verdicts:
    """Select each trio's critical rules by one way's scores [C, R], and label it by them (equations 4, 10, 12).

    A trio without a critical rule, which `selection.threshold` allows, has nothing to tell A from B: a tie.
    """
    a, b = scores[rated.sides[:, 0]], scores[rated.sides[:, 1]]
    critical = select(a, b, rated.relevance, settings=selection)
    chosen = [row for row, rules in enumerate(critical) if len(rules)]
    phi = np.zeros((2, len(critical)))
    phi[:, chosen] = [aggregate(side[chosen], [critical[row] for row in chosen]) for side in (a, b)]
    found = [prefer(phi_a, phi_b, selection.tie_tolerance) for phi_a, phi_b in phi.T]
    return Verdicts(
        critical,
        np.array([0 if preference.chosen_is == "a" else 1 for preference in found]),
        np.array([preference.tie for preference in found]),
    )


def overlaps(first: Sequence[IndexArray], second: Sequence[IndexArray]) -> FloatArray:
    """Shared part of each two sets, by the size of the larger: of r rules each, the share of r. Two empty ones: 1."""
    pairs = [({*a.tolist()}, {*b.tolist()}) for a, b in zip(first, second, strict=True)]
    return np.array([len(a & b) / max(len(a), len(b)) if a or b else 1.0 for a, b in pairs])


def _overlap_by_chance(
    rated: RatedWays, place: int, reference: Sequence[IndexArray], selection: SelectionSettings, seed: int
) -> float:
    """The overlap if this way's ratings told nothing of the rules: r / R, but for the relevance that both share."""
    generator = np.random.default_rng(seed)
    a, b = rated.scores[place][rated.sides[:, 0]], rated.scores[place][rated.sides[:, 1]]
    everything = np.tile(np.arange(a.shape[1]), (len(a), 1))
    found = []
    for _ in range(SHUFFLES):
        order = generator.permuted(everything, axis=1)
        moved_a, moved_b = np.take_along_axis(a, order, axis=1), np.take_along_axis(b, order, axis=1)
        found.append(overlaps(select(moved_a, moved_b, rated.relevance, settings=selection), reference).mean())
    return float(np.mean(found))


def _median_of_rules(by_rule: FloatArray) -> FloatArray:
    """Median [resamples] over the rules that have a correlation there; NaN where none has."""
    known = np.isfinite(by_rule).any(axis=1)
    medians = np.full(len(by_rule), np.nan)
    medians[known] = np.nanmedian(by_rule[known], axis=1)
    return medians


def _over_trios(values: NDArray[np.generic], rated: RatedWays, weights: FloatArray) -> Estimate:
    """Mean over trios of what lies in [0, 1]."""
    prompt_of, prompts = rated.prompt_of[rated.sides[:, 0]], weights.shape[1]
    counts = sum_by_prompt(np.ones(len(values)), prompt_of, prompts)
    return _certain(share(sum_by_prompt(values, prompt_of, prompts), counts, weights))


def _human_agreement(labels: NDArray[np.int64], rated: RatedWays, weights: FloatArray) -> Estimate | None:
    known = [row for row, label in enumerate(rated.human) if label is not None]
    prompt_of, prompts = rated.prompt_of[rated.sides[known, 0]], weights.shape[1]
    agrees = [labels[row] == rated.human[row] for row in known]
    counts = sum_by_prompt(np.ones(len(known)), prompt_of, prompts)
    return share(sum_by_prompt(agrees, prompt_of, prompts), counts, weights)


def _over_cells(values: FloatArray, rated: RatedWays, weights: FloatArray) -> Estimate:
    prompts, rules = weights.shape[1], values.shape[1]
    sums = sum_by_prompt(values.sum(axis=1), rated.prompt_of, prompts)
    counts = sum_by_prompt(np.full(len(values), float(rules)), rated.prompt_of, prompts)
    return _certain(estimate(ratios(sums, counts, weights)))


def _certain(found: Estimate | None) -> Estimate:
    """What is defined wherever there is a trio, a cell and a call."""
    assert found is not None
    return found
