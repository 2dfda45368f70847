"""Whole pipelines with a tiny model, and ones that are begun with wrong words."""

from __future__ import annotations

import pytest
from support import Setup, run

RULES = 6
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge.layuot=paper"], "did you mean `layout`"),
        (["selection.r=7"], "selection.r = 7, but the pool"),
        (["trios=/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["judge.labels=[Yes, Yesterday, No]", "judge.engine=transformers"], "Yesterday"),
        (["rate.judge.model=/nowhere"], "/nowhere"),
    ],
)
def test_wrong_words_are_refused_by_name(setup: Setup, words: list[str], message: str) -> None:
    done = run(setup.job("pipeline", f"trios={setup.trios}", *words))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
