"""What the terminal and the page say of ways to rate: the numbers that were found, and dashes where there are none."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from ramo_ray.core.comparison import WayComparison
from ramo_ray.core.resampling import Estimate
from ramo_ray.evaluation.comparison_page import ComparisonData, render
from ramo_ray.evaluation.comparison_text import conclusions, significant, tables
from ramo_ray.evaluation.report_data import Judge

ONE = Estimate(1.0, 1.0, 1.0)


def way(name: str, **values: object) -> WayComparison:
    made = WayComparison(
        name=name,
        rule_correlations=[Estimate(0.5, 0.25, 0.75), None, Estimate(-0.125, -0.5, 0.25)],
        correlation=Estimate(0.1875, 0.1, 0.3),
        overlap=Estimate(0.62, 0.5, 0.74),
        overlap_by_chance=0.31,
        flips=Estimate(0.12, 0.05, 0.2),
        flipped=6,
        ties=Estimate(0.0, 0.0, 0.07),
        human_agreement=Estimate(0.52, 0.4, 0.64),
        label_mass=Estimate(0.913, 0.9, 0.92),
        calls_a_second=Estimate(42.04, 40.0, 44.0),
        speed=Estimate(21.04, 19.06, 23.0),
    )
    return made._replace(**values)


@pytest.fixture
def ways() -> list[WayComparison]:
    reference = way(
        "paper/three_labels", flipped=0, flips=Estimate(0, 0, 0.07), overlap=ONE, correlation=ONE, speed=ONE
    )
    nothing = way("rule_last/number", rule_correlations=[None] * 3, correlation=None, human_agreement=None, ties=ONE)
    return [reference, way("rule_last/three_labels"), nothing]


def page(ways: list[WayComparison], **values: object) -> str:
    return render(ComparisonData(title="Ways", output="runs/w", ways=ways, trios=50, **values))  # type: ignore[arg-type]


def text_of(html: str) -> str:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(html[html.index("<body>") :])
    return " ".join(" ".join(found).split())


def test_a_sentence_says_what_a_way_costs_and_changes(ways: list[WayComparison]) -> None:
    first, second = conclusions(ways, 50)
    assert first == (
        "rule_last/three_labels: 21.0× [19.1, 23.0] the calls/s of paper/three_labels; 6 of 50 labels flip, "
        "12.0% [5.0%, 20.0%]; 62.0% of the critical rules are shared (31.0% by chance)."
    )
    assert second.startswith("rule_last/number: ")


@pytest.mark.parametrize(
    ("value", "said"), [(0.731, "0.73"), (9.996, "10.0"), (21.04, "21.0"), (99.96, "100"), (18_912.4, "18,912")]
)
def test_three_digits_or_all_before_the_point(value: float, said: str) -> None:
    assert significant(value) == said


def test_tables_hold_every_way_and_the_reference_where_it_has_a_meaning(ways: list[WayComparison]) -> None:
    agreement, cost = tables(ways)
    assert [name for name, _ in agreement.rows] == ["rule_last/three_labels", "rule_last/number"]
    assert [name for name, _ in cost.rows] == [found.name for found in ways]
    assert all(len(cells) == len(table.headings) for table in (agreement, cost) for _, cells in table.rows)
    assert [cell.value for cell in agreement.rows[0][1]] == ["0.19", "1", "62.0%", "31.0%", "12.0%"]
    assert agreement.rows[0][1][4].interval == "5.0% to 20.0%"
    # Not defined is a dash, never a number.
    assert [cell.value for cell in agreement.rows[1][1]][:2] == ["–", "3"]
    assert cost.rows[2][1][4] == ("–", "")
    assert cost.rows[0][1][1] == ("–", "")


def test_the_page_shows_them_without_script_or_network(ways: list[WayComparison]) -> None:
    html = page(ways, judge=Judge(engine="scripted", model="x"), facts={"source": "pairs.jsonl"}, created="today")
    assert html == page(
        ways, judge=Judge(engine="scripted", model="x"), facts={"source": "pairs.jsonl"}, created="today"
    )
    text = text_of(html)
    for said in (*conclusions(ways, 50), "pairs.jsonl", "today", "its answers are hashes", "0.19 0.10 to 0.30", "21.0"):
        assert said in text
    assert "nan" not in text.lower().split()
    assert "<script" not in html
    assert set(re.findall(r"https?://[^\s\"')]*", html)) == {"http://www.w3.org/2000/svg"}
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert len(drawings) == 2
    identifiers = re.findall(r'\bid="([^"]*)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert {f"#{name}" for name in identifiers} >= set(re.findall(r'href="(#[^"]*)"', html))


def test_a_drawing_has_a_dot_for_each_rule_that_has_a_correlation(ways: list[WayComparison]) -> None:
    by_rule, speed = re.findall(r"<svg.*?</svg>", page(ways), re.DOTALL)
    assert "no rule has one" in by_rule
    assert all(found.name in by_rule for found in ways[1:])
    assert all(found.name in speed for found in ways)
    more = way("rule_last/three_labels", rule_correlations=[ONE] * 5)
    assert page([ways[0], more]).count("<use") > page([ways[0], ways[1]]).count("<use")


def test_an_interval_beside_its_value_is_drawn(ways: list[WayComparison]) -> None:
    assert "<svg" in page([ways[0], way("rule_last/number", calls_a_second=Estimate(5.0, 5.5, 6.0))])


def test_markup_in_any_text_stays_text(ways: list[WayComparison]) -> None:
    attack = "</style><script>alert(1)</script>"
    html = page(ways, facts={attack: attack}, fingerprints={attack: attack}, config={attack: attack}, created=attack)
    assert "<script" not in html
    assert text_of(html).count("alert(1)") > 5
