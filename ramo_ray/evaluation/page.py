"""What the pages of this package share: the template environment, and the word on what a judge is worth.

What comes from the data is cleaned and escaped at one place, here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ramo_ray.evaluation import formatting
from ramo_ray.evaluation.report_data import Judge
from ramo_ray.evaluation.texts import clean

BUNDLED_JUDGE = "bundled:smollm2-135m-instruct"
_TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """The environment of all templates: it escapes and cleans, and refuses a name that is not there."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    for name in ("whole", "decimal", "signed", "calls", "percent", "duration"):
        made.filters[name] = getattr(formatting, name)
    return made


def _finalize(value: Any) -> Any:
    """Clean every text that a template prints; escaping follows. Our own drawings are past both."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def judge_warning(judge: Judge | None) -> str:
    """What a reader must know of the judge before any number; empty where there is nothing."""
    if judge is None:
        return ""
    if judge.engine == "scripted":
        return "The judge was scripted: its answers are hashes. This run is a dry run, and its numbers mean nothing."
    if judge.model == BUNDLED_JUDGE:
        return (
            "The judge was the bundled 135M model, which agrees with humans no better than chance. "
            "This run shows the machinery, not the method’s quality."
        )
    return ""
