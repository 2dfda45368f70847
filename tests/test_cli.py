"""`ramo`'s words on the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from ramo_ray.cli import app
from ramo_ray.core.prompts import RatingTemplate
from ramo_ray.core.rules import load_pool


@pytest.mark.parametrize("method", ["three_labels", "two_labels", "number"])
@pytest.mark.parametrize("layout", ["paper", "rule_last"])
def test_prompt_prints_what_the_judge_is_asked(layout: Any, method: Any) -> None:
    words = ["prompt", "Why?", "So.", "--rule", "7", "--layout", layout, "--method", method]
    shown = CliRunner().invoke(app, words)
    asked = RatingTemplate(layout, "keep", method).render(
        [{"role": "user", "content": "Why?"}], "So.", load_pool().texts[7]
    )
    assert (shown.exit_code, shown.output) == (0, asked + "\n")


def test_prompt_without_a_method_asks_for_three_labels() -> None:
    plain, number = (CliRunner().invoke(app, ["prompt", "Why?", "So.", *more]) for more in ((), ("--method", "number")))
    assert "“Irrelevant”" in plain.output
    assert "“Irrelevant”" not in number.output
