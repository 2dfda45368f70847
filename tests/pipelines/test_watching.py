"""What an actor does with a text it does under watch: whatever kills it, its tokenizer too, has a batch to its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ramo_ray.judging import judge
from ramo_ray.models.adapter import new_adapter
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines import labeling, responses
from ramo_ray.pipelines.labeling import RulePicker
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.pipelines.responses import ResponseWriter
from ramo_ray.pipelines.tables import packed, unpacked

POOL = ["r1", "r2", "r3"]
GROUP = {
    "prompt_id": "p",
    "prompt": [{"role": "user", "content": "Why?"}],
    "conversations": [{"conversation_id": side, "response": f"Because {side}."} for side in "ab"],
    "trios": [{"trio_id": "t", "a": 0, "b": 1, "rule_ids": POOL[:1]}],
    "bad": [],
    **dict.fromkeys(("calls", "tokens", "seconds", "adapter_seconds"), 0),
}


class Watch:
    """An overseer's answer to a batch: go on, or nothing shall begin any more."""

    def __init__(self, *, stopping: bool) -> None:
        self.stopping, self.watching, self.seen = stopping, False, list[str]()

    def through(self, ids: Sequence[str], work: Callable[[Sequence[int]], list[Any]]) -> list[Any] | None:
        self.seen += ids
        if self.stopping:
            return None
        self.watching = True
        try:
            return work(range(len(ids)))
        finally:
            self.watching = False

    def report(self, **_: float) -> None: ...


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    new_adapter(tiny_model, POOL).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(params=["judge", "picker", "writer"])
def actor(request: pytest.FixtureRequest, long_context_model: Path, adapter: Path) -> Any:
    model = {"model": str(long_context_model), "engine": "scripted"}
    if request.param == "judge":
        return RuleJudge(model, POOL, "all_rules")
    if request.param == "picker":
        return RulePicker({}, str(adapter), POOL, 1)
    return ResponseWriter([{"name": "one", "model": str(long_context_model), "sampling": {"max_tokens": 4}}])


@pytest.mark.slow
@pytest.mark.parametrize("stopping", [False, True])
def test_texts_are_read_under_watch_only(actor: Any, stopping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = actor.watched = Watch(stopping=stopping)
    read: list[bool] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            read.append(watch.watching)
            return function(*arguments, **named)

        return call

    for module, name in ((labeling, "adapter_token_ids"), (responses, "encode_chat"), (judge, "fit")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    if isinstance(actor, RuleJudge):
        actor.judge.fit = judge.fit
    (found,) = unpacked(actor(packed("groups", [GROUP])))
    assert bool(found["postponed"]) == stopping
    assert watch.seen
    assert all(read)
    assert bool(read) != stopping
