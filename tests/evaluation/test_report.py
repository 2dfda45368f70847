import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from ramo_ray.evaluation.report import MAX_TRIOS, render
from ramo_ray.evaluation.report_data import (
    Estimate,
    Judge,
    LabelledTrio,
    PolicyAnswers,
    PolicySample,
    ReportData,
    Rule,
    RuleUse,
    StageCost,
)
from ramo_ray.evaluation.svg import VARIABLES

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a reader sees: all of it, and with every fold closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.all_text = self.visible_text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has the event handler {name}"
            assert (tag, name) != ("details", "open")
            if name == "id":
                self.ids[str(value)] += 1
            elif name in ("href", "src", "clip-path"):
                self.references.append(str(value))
            elif name in ("aria-label", "title"):
                self.handle_data(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "title"):
            return
        self.all_text += data + " "
        if "details" not in self.open or "summary" in self.open[self.open.index("details") :]:
            self.visible_text += data + " "


def words(text: str) -> str:
    return " ".join(text.split())


def empty() -> ReportData:
    return ReportData(title="A run", output="runs/a")


def fill_texts(value: Any, text: str) -> Any:
    """Append a text to every text field of a record, all the way down; literals that mean something stay."""
    if isinstance(value, str):
        return value + text
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"chosen_is", "human", "status", "engine", "model"}
        changed = {f.name: fill_texts(getattr(value, f.name), text) for f in fields(value) if f.name not in kept}
        return replace(value, **changed)
    if isinstance(value, dict):
        is_message = "role" in value
        return {key if is_message else key + text: fill_texts(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_texts(item, text) for item in value]
    return value


def test_the_page_is_balanced_self_contained_and_without_script(report_html: str) -> None:
    html, page = report_html, Page(report_html)
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert page.tags["svg"] == 8
    assert set(re.findall(r"https?://[^\s\"')]*", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_ids_are_unique_and_every_reference_finds_its_own(report_html: str) -> None:
    page = Page(report_html)
    assert set(page.ids.values()) == {1}
    targets = {re.sub(r"^(url\()?#|\)$", "", reference) for reference in page.references}
    assert targets <= page.ids.keys()


def test_the_same_data_give_the_same_bytes(report_data: ReportData, report_html: str) -> None:
    assert render(report_data) == report_html


def test_every_colour_is_defined_for_light_and_dark(report_html: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", report_html, re.DOTALL)
    used = set(re.findall(r"var\((--[a-z-]+)\)", report_html)) - {"--low", "--high", "--value"}
    assert set(VARIABLES.values()) <= used
    for scheme in (light, dark):
        assert used <= set(re.findall(r"(--[a-z-]+):", scheme))


def test_markup_in_any_text_stays_text(report_data: ReportData, report_html: str) -> None:
    attack = "</style><script>alert(1)</script><img src=x onerror=y>\"'{{ 7*7 }}"
    hostile = fill_texts(report_data, attack)
    html = render(hostile)
    page = Page(html)
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.tags["style"] == 1
    assert page.tags == Page(report_html).tags
    assert page.all_text.count("alert(1)") > 100
    assert "{{ 7*7 }}" in page.all_text


def test_surrogates_and_control_characters_do_not_break_the_page(report_data: ReportData) -> None:
    html = render(fill_texts(report_data, "\ud83d\x00\x1b\x85\uffff"))
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    assert "\ufffd␀␛\ufffd\ufffd" in Page(html).all_text


def test_what_the_policy_wrote_is_seen_only_when_unfolded_and_cut_where_it_is_long(report_data: ReportData) -> None:
    assert report_data.policy is not None
    long = PolicySample(step=7, text="SAMPLE-TEXT " * 5_000, reward=-0.5)
    page = Page(render(replace(empty(), policy=replace(report_data.policy, samples=[long]))))
    assert "SAMPLE-TEXT" in page.all_text
    assert "SAMPLE-TEXT" not in page.visible_text
    assert "Step 7, reward −0.5" in words(page.visible_text)
    assert "more characters, in samples.jsonl" in words(page.all_text)
    assert page.all_text.count("SAMPLE-TEXT") < 1_000


def test_a_policy_before_and_after_is_told_in_numbers_and_its_answers_are_folded(report_data: ReportData) -> None:
    change = report_data.policy_change
    assert change is not None
    secret = PolicyAnswers(
        prompt=[{"role": "user", "content": "PROMPT-TEXT"}],
        before="BEFORE-TEXT " * 2_000,
        after="AFTER-TEXT",
        reward_before=None,
        reward_after=0.5,
    )
    page = Page(render(replace(empty(), policy_change=replace(change, samples=[secret]))))
    seen = words(page.visible_text)
    assert "62.5% win rate by the judge, 95% interval 50.0% to 75.0%" in seen
    assert "14 / 2 / 8 won, tied and lost" in seen
    assert "−0.250 0.500 +0.750 +0.625 to +0.875 24" in seen
    assert "25.0% 37.5% +12.5 points 0.0 to +25.0 24" in seen
    assert "The policy was aligned on 6 of these prompts." in seen
    assert "The judge was judges/one" in seen
    assert "Reward – before, +0.500 after" in seen
    for text in ("PROMPT-TEXT", "BEFORE-TEXT", "AFTER-TEXT"):
        assert text in page.all_text
        assert text not in page.visible_text
    assert page.all_text.count("BEFORE-TEXT") < 300
    assert "more characters, in answers.parquet" in words(page.all_text)


def test_texts_of_prompts_and_responses_are_seen_only_when_unfolded(report_data: ReportData) -> None:
    secrets = ["PROMPT-TEXT", "CHOSEN-TEXT", "REJECTED-TEXT", "SYSTEM-TEXT"]
    trio = replace(
        report_data.trios[0],
        prompt=[{"role": "system", "content": secrets[3]}, {"role": "user", "content": secrets[0]}],
        chosen=secrets[1],
        rejected=secrets[2],
    )
    html = render(replace(empty(), trios=[trio]))
    page = Page(html)
    for secret in secrets:
        assert html.count(secret) == 1
        assert secret in page.all_text
        assert secret not in page.visible_text


def test_every_fold_of_a_trio_holds_its_rules_scores_and_texts() -> None:
    trio = LabelledTrio(
        trio_id="0123456789abcdef",
        prompt=[{"role": "user", "content": "Which is better?"}],
        chosen="The second one.",
        rejected="The first one.",
        chosen_is="b",
        rule_ids=["known", "gone"],
        scores_chosen=[0.75, -0.25],
        scores_rejected=[0.5, -0.5],
        margin=-0.25,
        tie=False,
        human="a",
    )
    rules = [Rule(index=17, id="known", text="Accept what is kind.")]
    page = Page(render(replace(empty(), trios=[trio], rules=rules, trio_count=41)))
    text = words(page.all_text)
    assert "1 of 41 labelled trios" in text
    assert "0123456789 B −0.250 A no" in text
    assert "17 Accept what is kind. +0.500 +0.750 −0.250" in text
    assert "gone (not in the pool) −0.500 −0.250 −0.250" in text
    assert "φ, the mean 0.000 +0.250 −0.250" in text
    assert "Response A (rejected) The first one." in text
    assert "Response B (chosen) The second one." in text
    swapped = words(Page(render(replace(empty(), trios=[replace(trio, chosen_is="a")], rules=rules))).all_text)
    assert "17 Accept what is kind. +0.750 +0.500 +0.250" in swapped
    assert "Response A (chosen) The second one." in swapped
    assert "Response B (rejected) The first one." in swapped


@pytest.mark.parametrize(("human", "chosen", "said"), [("a", "a", "A yes"), ("b", "a", "B no"), (None, "a", "– –")])
def test_agreement_with_the_human(report_data: ReportData, human: Any, chosen: Any, said: str) -> None:
    trio = replace(report_data.trios[0], trio_id="0123456789", chosen_is=chosen, human=human, margin=0.5, tie=True)
    text = words(Page(render(replace(empty(), trios=[trio]))).visible_text)
    assert f"0123456789 A +0.500 tie {said}" in text


def test_numbers_shown_are_the_data(report_data: ReportData, report_html: str) -> None:
    text = words(Page(report_html).visible_text)
    assert "62.5% 37.5% to 81.2%" in text
    assert "45.8% 29.2% to 66.7%" in text
    assert "Response A 1,108 55.4% Response B 892 44.6% of these, ties 3 0.1% All 2,000" in text
    assert "Rule Adapter 41.2% 41.3% 41.4% the 5 most frequent rules 31.1% 31.2% 31.3% 5 random rules 5.1%" in text
    assert "10 judge calls a labelled trio, instead of 200 1,900 judge calls saved on 10 trios 4 min 27 s" in text
    assert "rate finished 23 13 0 10 2,600 52,118 1 min 32 s" in text
    assert "evaluate_reward waiting – – – – – – –" in text
    assert "All 1 2,700 64,300 1 h 05 min" in text
    assert "12 of 2,000 labelled trios" in text
    assert report_data.rule_use is not None
    assert f"{int((report_data.rule_use.counts == 0).sum())} never critical" in text
    assert "Each begins “Accept the response that best shows”" in text


def test_both_terms_sizes_are_shown_weighed(report_data: ReportData, report_html: str) -> None:
    terms = report_data.terms
    assert terms is not None
    text = words(Page(report_html).visible_text)
    median, ninth = np.median(terms.critical_discrepancy), np.quantile(terms.critical_discrepancy, 0.9)
    weighted = 2.0 * terms.critical_relevance
    expected = [median, ninth, np.median(weighted), np.quantile(weighted, 0.9)]
    assert "critical 65 " + " ".join(f"{value:.3f}" for value in expected) in text


def test_the_example_lists_its_critical_rules_with_their_sums(report_data: ReportData, report_html: str) -> None:
    example = report_data.example
    assert example is not None
    text = words(Page(report_html).visible_text)
    best = example.critical[0]
    total = abs(example.scores_a[best] - example.scores_b[best]) + 2.0 * example.relevance[best]
    assert f"{report_data.rules[best].text} {example.scores_a[best]:+.3f}".replace("-", "−") in text
    assert f"{total:.3f}" in text


def test_an_empty_report_says_what_is_missing() -> None:
    page = Page(render(empty()))
    text = words(page.visible_text)
    assert page.tags["svg"] == page.tags["details"] == 0
    for stage in ("rate", "train_adapter", "label", "train_reward", "evaluate_reward", "evaluate_policy"):
        assert stage in text
    assert "Not known yet" in text
    assert "Read with care" not in text
    assert "None" not in text.replace("None written yet", "")


@pytest.mark.parametrize("field", [f.name for f in fields(ReportData) if f.name not in ("title", "output")])
def test_each_part_of_the_data_can_stand_alone(report_data: ReportData, field: str) -> None:
    Page(render(replace(empty(), **{field: getattr(report_data, field)})))


def test_quarantine_that_is_empty_is_not_quarantine_that_is_unknown() -> None:
    assert "no row was put aside" in render(replace(empty(), quarantine=[]))


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        (Judge(engine="vllm", model="bundled:smollm2-135m-instruct"), "not the method’s quality"),
        (Judge(engine="scripted", model=""), "dry run"),
        (Judge(engine="vllm", model="meta-llama/Meta-Llama-3-70B-Instruct"), None),
    ],
)
def test_a_judge_that_proves_nothing_is_announced(judge: Judge, sentence: str | None) -> None:
    text = Page(render(replace(empty(), judge=judge))).visible_text
    assert ("Read with care" in text) == (sentence is not None)
    assert sentence is None or sentence in text


def test_counts_that_do_not_add_up_are_announced() -> None:
    stage = StageCost(name="label", status="finished", rows_in=24, rows_out=20, quarantined=1, other_split=2)
    text = words(Page(render(replace(empty(), stages=[stage]))).visible_text)
    assert "Counts do not add up. label read 24 rows; 20 out, 1 quarantined and 2 left" in text
    even = replace(stage, rows_out=21)
    running = replace(stage, status="running")
    assert "do not add up" not in render(replace(empty(), stages=[even, running]))


def test_a_total_that_no_stage_has_counted_is_nothing() -> None:
    stages = [StageCost(name="label", status="running"), StageCost(name="rate", status="running", tokens=0)]
    text = words(Page(render(replace(empty(), stages=stages))).visible_text)
    assert "All – – 0 –" in text


def test_an_estimate_without_an_interval_shows_none() -> None:
    page = Page(render(replace(empty(), pair_accuracy=Estimate(value=1.0, count=1))))
    assert "100.0% – 1" in words(page.visible_text)


def test_a_rule_pool_that_was_never_used_is_drawn(report_data: ReportData) -> None:
    html = render(replace(empty(), rules=report_data.rules, rule_use=RuleUse(counts=np.zeros(100, dtype=int), trios=3)))
    assert "100 never critical" in words(Page(html).visible_text)


def test_at_most_two_hundred_trios_and_two_megabytes(report_data: ReportData) -> None:
    trios = [
        replace(report_data.trios[n % 12], trio_id=f"{n:024x}", chosen="好" * 20_000, rejected="<'&\"\x00>" * 5_000)
        for n in range(MAX_TRIOS + 50)
    ]
    html = render(replace(report_data, trios=trios))
    page = Page(html)
    # Beside them, the configuration, what the policy wrote at two steps, and its answers before and after.
    assert page.tags["summary"] == MAX_TRIOS + 4
    assert "200 of 2,000 labelled trios" in page.visible_text
    assert len(html.encode()) < 2_000_000
    assert "more characters, in the table" in page.all_text
    assert trios[0].prompt[0]["content"] in page.all_text, "only the longest texts are cut"


def test_responses_that_the_judge_read_in_part_are_announced(report_data: ReportData) -> None:
    assert "read only in part" not in render(report_data)
    stages = [replace(s, truncated={"rate": 3, "label": 2}.get(s.name)) for s in report_data.stages]
    first, *others = report_data.trios
    page = render(replace(report_data, stages=stages, trios=[replace(first, truncated=True), *others]))
    assert "In <code>rate</code> 3 conversations have a response that the judge read only in part" in page
    assert "In <code>label</code> 2 trios have a response that the judge read only in part" in page
    assert page.count("The judge read a response only in part") == 1
