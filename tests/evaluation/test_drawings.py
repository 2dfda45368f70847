import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from ramo_ray.evaluation import rule_plots, training_plots
from ramo_ray.evaluation.report_data import ReportData, Rule, RuleUse, SelectionTerms, TrainingCurve, TrioRatings


class Texts(HTMLParser):
    """Collects the texts of a drawing."""

    def __init__(self, svg: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(svg)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)


def make_rules(*texts: str) -> list[Rule]:
    return [Rule(index=index, id=f"id{index}", text=text) for index, text in enumerate(texts)]


def test_rule_frequency_shows_the_counts_best_first_and_leaves_out_what_never_was() -> None:
    rules = make_rules("Accept what is kind.", "Accept what is true.", "Accept what is brief.", "Accept what is calm.")
    svg = rule_plots.rule_frequency(rules, RuleUse(counts=np.array([2, 0, 5, 2]), trios=8))
    assert Texts(svg).texts == [
        "2 · brief.", "5 (62.5%)", "0 · kind.", "2 (25.0%)", "3 · calm.", "2 (25.0%)",
    ]  # fmt: skip


def test_at_most_twenty_rules_are_drawn(report_data: ReportData) -> None:
    use = RuleUse(counts=np.arange(1, 101), trios=100)
    texts = Texts(rule_plots.rule_frequency(report_data.rules, use)).texts
    assert len(texts) == 40
    assert texts[0].startswith("99 · ")
    assert texts[-2].startswith("80 · ")


def test_rule_texts_are_never_read_as_mathematics_or_markup() -> None:
    rules = make_rules(r"keep $\frac{1}{$ <script>x</script>", "善良 \x00 \ud800")
    texts = Texts(rule_plots.rule_frequency(rules, RuleUse(counts=np.array([2, 1]), trios=2))).texts
    assert texts[0] == r"0 · keep $\frac{1}{$ <script>x</script>"
    assert texts[2] == "1 · 善良 ␀ \ufffd"


@pytest.mark.parametrize(
    ("texts", "opening"),
    [
        (
            ["Accept the response that is kind.", "Accept the response that isolates nothing."],
            "Accept the response that ",
        ),
        (["Be kind.", "Do no harm."], ""),
        (["Alone in the pool."], ""),
        ([], ""),
    ],
)
def test_shared_opening_ends_at_a_word(texts: list[str], opening: str) -> None:
    assert rule_plots.shared_opening(make_rules(*texts)) == opening


def drawn_points(svg: str, color: str) -> np.ndarray:
    """Positions of a colour's dots, in SVG units."""
    root = ElementTree.fromstring(svg)
    dots = [e for e in root.iter("{http://www.w3.org/2000/svg}use") if f"fill: var({color})" in e.get("style", "")]
    return np.array([[float(e.get("x", "nan")), float(e.get("y", "nan"))] for e in dots])


def test_relevance_is_drawn_as_equation_12_weighs_it() -> None:
    relevance, discrepancy = np.array([0.1, 0.3, 0.2]), np.array([0.5, 0.1, 0.9])
    nothing = np.array([])
    terms = SelectionTerms(
        gamma=2.0,
        critical_discrepancy=discrepancy,
        critical_relevance=relevance,
        other_discrepancy=nothing,
        other_relevance=nothing,
    )
    across, down = drawn_points(rule_plots.selection_terms(terms), "--orange")[:3].T
    np.testing.assert_allclose(np.corrcoef(across, relevance)[0, 1], 1)
    np.testing.assert_allclose(np.corrcoef(down, discrepancy)[0, 1], -1)
    assert "γ = 2" in rule_plots.selection_terms(terms)
    assert "not weighed" in rule_plots.selection_terms(replace(terms, gamma=0.0))


@pytest.mark.parametrize("count", [0, 1, 5_000])
def test_any_number_of_cells_can_be_drawn_and_few_bytes_are_used(count: int) -> None:
    random = np.random.default_rng(0)
    values = [random.random(count) for _ in range(4)]
    for value in values:
        value[: count // 10] = np.nan
    terms = SelectionTerms(
        gamma=2.0,
        critical_discrepancy=values[0],
        critical_relevance=values[1],
        other_discrepancy=values[2],
        other_relevance=values[3],
    )
    assert len(rule_plots.selection_terms(terms)) < 250_000


def test_each_critical_rule_of_a_trio_is_marked_with_its_index(report_data: ReportData) -> None:
    assert report_data.example is not None
    texts = Texts(rule_plots.trio_ratings(report_data.example, report_data.rules)).texts
    marked = [text for text in texts if text.isdigit()]
    assert set(marked) >= {str(position) for position in report_data.example.critical}


def test_a_trio_with_unanswered_rules_is_drawn(report_data: ReportData) -> None:
    scores = np.array([0.5, np.nan, -0.2])
    example = TrioRatings(
        trio_id="t", scores_a=scores, scores_b=-scores, relevance=scores, gamma=2.0, critical=[0]
    )  # fmt: skip
    svg = rule_plots.trio_ratings(example, report_data.rules[:3])
    assert len(drawn_points(svg, "--blue")) == 2 + 1, "two scores and the legend's dot"


def test_training_curve_has_a_panel_for_what_was_reported() -> None:
    steps = np.array([1, 2])
    alone = TrainingCurve(name="Reward model", steps=steps, loss=np.array([0.7, np.nan]))
    assert {"loss", "optimiser step"} <= set(Texts(training_plots.training_curve(alone, 0)).texts)
    whole = replace(alone, accuracy=np.array([0.5, 1.0]), learning_rate=np.array([0.0, 2e-5]))
    texts = Texts(training_plots.training_curve(whole, 0)).texts
    assert {"loss", "accuracy", "learning rate / 1e-5"} <= set(texts)
    flat = replace(whole, learning_rate=np.zeros(2))
    assert "learning rate" in Texts(training_plots.training_curve(flat, 0)).texts


@pytest.mark.parametrize("margins", [[0.5], [0.0], [-3.0, 2.0, np.nan], [1e-9, -1e-9], [1e6, 1.0]])
def test_margins_at_zero_and_below_count_as_ranked_otherwise(margins: list[float]) -> None:
    texts = Texts(training_plots.reward_differences(np.array(margins), training_plots.MARGINS)).texts
    above = sum(margin > 0 for margin in margins)
    below = sum(margin <= 0 for margin in margins)
    assert f"ranked as labelled: {above}" in texts
    assert f"ranked otherwise: {below}" in texts


def test_no_bar_of_margins_mixes_the_two_sides() -> None:
    for margins in (np.array([0.0]), np.array([0.3, -0.1, 0.9]), np.random.default_rng(1).normal(2, 1, 500)):
        edges = training_plots._edges_at_zero(margins)
        assert 0 in edges
        assert edges[0] <= margins.min()
        assert margins.max() <= edges[-1]
        np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])


def test_a_drawing_names_no_colour_of_its_own_and_no_address(report_data: ReportData) -> None:
    assert report_data.rule_use is not None
    svg = rule_plots.rule_frequency(report_data.rules, report_data.rule_use)
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b", svg.replace('href="#', ""))
    assert set(re.findall(r"https?://[^\"]*", svg)) == {"http://www.w3.org/2000/svg"}
