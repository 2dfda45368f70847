"""Drawings of what trainings reported and how the reward model ranks: arrays in, SVG elements out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from ramo_ray.evaluation.formatting import whole
from ramo_ray.evaluation.report_data import Floats, Integers, PolicyTraining, TrainingCurve
from ramo_ray.evaluation.svg import BLUE, INK, ORANGE, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_curve(curve: TrainingCurve, number: int) -> Markup:
    """Draw what a training reported: loss, accuracy and learning rate, those that there are, one above the other."""
    panels = [("loss", curve.loss)]
    if curve.accuracy is not None:
        panels.append(("accuracy", curve.accuracy))
    if curve.learning_rate is not None:
        panels.append(_learning_rate(curve.learning_rate))
    description = f"Training curves of the {curve.name}: {', '.join(name for name, _ in panels)} over optimiser steps."
    draw = partial(_draw_training_curve, steps=curve.steps, panels=panels)
    return inline_svg(f"training-{number}", description, (440, 40 + 120 * len(panels)), draw)


def _learning_rate(values: Floats) -> tuple[str, Floats]:
    largest = float(np.nanmax(values, initial=0.0))
    if largest <= 0:
        return "learning rate", values
    exponent = math.floor(math.log10(largest))
    return f"learning rate / 1e{exponent}", values / 10.0**exponent


def _draw_training_curve(figure: Figure, *, steps: Integers, panels: Sequence[tuple[str, Floats]]) -> None:
    for axes, (name, _) in zip(_draw_panels(figure, steps, panels, "optimiser step"), panels, strict=True):
        if name == "accuracy":
            axes.set(ylim=(-0.04, 1.04), yticks=[0, 0.5, 1])
        else:
            axes.set_ylim(bottom=0)


def policy_training(curve: PolicyTraining) -> Markup:
    """Draw what PPO reported, step by step: reward, KL from the first policy, length and entropy."""
    panels = [
        ("mean reward", curve.reward),
        ("KL from the first policy", curve.kl),
        ("tokens of a response", curve.length),
        ("entropy", curve.entropy),
    ]
    description = f"Curves of PPO: {', '.join(name for name, _ in panels)} over steps."
    draw = partial(_draw_panels, steps=curve.steps, panels=panels, label="step of PPO")
    return inline_svg("policy", description, (440, 40 + 120 * len(panels)), draw)


def _draw_panels(figure: Figure, steps: Integers, panels: Sequence[tuple[str, Floats]], label: str) -> list[Axes]:
    """Curves over the same steps, one above the other."""
    from matplotlib.ticker import MaxNLocator

    column = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (name, values) in zip(column, panels, strict=True):
        axes.plot(steps, values, color=BLUE, lw=1.6, marker="o" if len(steps) <= 30 else None, markersize=3.5, mew=0)
        axes.set_title(name)
    margin = max(0.5, 0.03 * float(np.ptp(steps)))
    column[-1].set(xlabel=label, xlim=(steps.min() - margin, steps.max() + margin))
    column[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    return column


class DifferenceWords(NamedTuple):
    """What a histogram of differences says: its name as a drawing, its axes, and the two sides of zero."""

    name: str
    difference: str
    counted: str
    above: str
    below: str


MARGINS = DifferenceWords(
    "reward-margins",
    "reward of chosen − reward of rejected",
    "test pairs",
    "ranked as labelled",
    "ranked otherwise",
)
CHANGES = DifferenceWords("reward-changes", "reward after − reward before", "prompts", "higher after", "not higher")


def reward_differences(differences: Floats, words: DifferenceWords) -> Markup:
    """Draw the distribution of differences between two rewards, split at zero."""
    finite = differences[np.isfinite(differences)]
    description = f"Histogram of {len(finite)} values of {words.difference}; {int((finite > 0).sum())} are above zero."
    draw = partial(_draw_differences, differences=finite, words=words)
    return inline_svg(words.name, description, (440, 290), draw)


def _draw_differences(figure: Figure, *, differences: Floats, words: DifferenceWords) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    edges = _edges_at_zero(differences)
    above, below = differences[differences > 0], differences[differences <= 0]
    axes.hist(above, bins=edges.tolist(), color=BLUE, rwidth=0.92, label=f"{words.above}: {whole(len(above))}")
    axes.hist(below, bins=edges.tolist(), color=ORANGE, rwidth=0.92, label=f"{words.below}: {whole(len(below))}")
    axes.axvline(0, color=INK, lw=1)
    axes.set(xlabel=words.difference, ylabel=words.counted)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1, handleheight=1, columnspacing=1.5)


def _edges_at_zero(margins: Floats) -> Floats:
    """Bins of equal width with an edge at zero, so that no bar mixes the two sides; about √n of them, 6 to 40."""
    reach = float(np.abs(margins).max(initial=0.0)) or 1.0
    count = min(40, max(6, 2 * math.isqrt(len(margins))))
    # A hair wider than even, so that rounding leaves no margin outside.
    width = 2 * reach / count * (1 + 1e-9)
    first = math.floor(float(margins.min(initial=0.0)) / width)
    last = max(first + 1, math.ceil(float(margins.max(initial=0.0)) / width))
    return width * np.arange(first, last + 1)
